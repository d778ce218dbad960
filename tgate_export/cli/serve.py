"""`tgate-export serve`."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import click

from tgate_export.cli._backend_options import backend_option
from tgate_export.cli._batching_options import batching_options, max_images_option
from tgate_export.cli._console import stderr
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.common.install import pip_install

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command(name="serve")
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any."
)
@backend_option
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with a key a line; requests then need one of them. Default: none is needed.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    help="A name that requests may call the server by; repeat it for several. Default: names of "
    "this machine where --host is one of them, else any.",
)
@batching_options
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Weights of loaded models; the one not used for longest makes room. Default: no bound.",
)
@max_images_option(10)
@click.option(
    "--max-body", type=click.FloatRange(min=0, min_open=True), default=32, show_default=True,
    metavar="MIB", help="Of one request.",
)  # fmt: skip
@click.option(
    "--stop-seconds", type=click.FloatRange(min=0, min_open=True), default=60, show_default=True,
    help="That requests have to end when the server is told to stop.",
)  # fmt: skip
def command(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    backend: str,
    api_key_file: Path | None,
    hosts: tuple[str, ...],
    max_batch: int | None,
    max_in_flight: int | None,
    max_pending: int,
    call_target: float | None,
    memory: float | None,
    max_images: int,
    max_body: float,
    stop_seconds: float,
) -> None:
    """Serve bundles over HTTP: OpenAI's and A1111's image APIs, a page at /, metrics.

    Requests at different denoising steps share engine calls. The first bundle is what requests get
    that name no model; the others are loaded when they are first asked for. NAME= gives a bundle
    another name than its folder's.
    """
    packages = ("starlette", "uvicorn", "prometheus_client", "multipart")
    missing = [name for name in packages if not find_spec(name)]
    if missing:
        raise TGateError(f"serving needs {', '.join(missing)}: {pip_install('serve')}")
    from tgate_export.runtime.batching import BatchingOptions
    from tgate_export.serve.app import create_app
    from tgate_export.serve.options import ServeOptions
    from tgate_export.serve.pool import ModelPool
    from tgate_export.serve.server import listen, serve

    try:
        batching = BatchingOptions(max_batch, max_in_flight, max_pending, call_target)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
    allowed = hosts or (_LOOPBACK if host in _LOOPBACK else ())
    options = ServeOptions(
        api_keys=_keys(api_key_file),
        hosts=frozenset(allowed),
        batching=batching,
        memory_bytes=None if memory is None else int(memory * 2**30),
        max_images=max_images,
        max_body_bytes=int(max_body * 2**20),
        stop_seconds=stop_seconds,
    )
    pool = ModelPool(_named(bundles), backend, batching, options.memory_bytes)
    console = stderr()
    if host not in _LOOPBACK and not options.api_keys:
        console.print(
            f"warning: whoever reaches {host} may generate: --api-key-file FILE asks for a key",
            soft_wrap=True,
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with listen(host, port) as opened:
        shown = f"[{host}]" if ":" in host else host
        console.print(
            f"Loading {next(iter(pool.models))}, then serving {', '.join(pool.models)} at "
            f"http://{shown}:{opened.getsockname()[1]} (the page; APIs at /v1 and /sdapi/v1)",
            soft_wrap=True,
        )
        pool.load_first()
        serve(create_app(pool, options), options, opened)
    console.print("Stopped.")


def _named(bundles: tuple[str, ...]) -> dict[str, Path]:
    """Return the bundles by name, each by that of its folder unless it is given another."""
    found: dict[str, Path] = {}
    for text in bundles:
        name, equals, path = text.partition("=")
        folder = Path(path if equals else text)
        name = name if equals else folder.resolve().name
        if name in found:
            raise InvalidRequestError(
                f"{found[name]} and {folder} are both called {name}: give one as NAME={folder}"
            )
        found[name] = folder
    return found


def _keys(file: Path | None) -> frozenset[str]:
    if file is None:
        return frozenset()
    keys = frozenset(line.strip() for line in file.read_text().splitlines() if line.strip())
    if not keys:
        raise InvalidRequestError(f"--api-key-file {file} holds no key: write one a line")
    return keys
