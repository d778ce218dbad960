"""A bulk run by the machines of a Ray cluster, which share the folder: one actor a GPU or socket.

Ray Data hands blocks of lines to actors, each of which has a batcher of its own and writes images.
What becomes of the lines comes back here, where alone it is written down.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tgate_export.bulk.output_folder import RUNNING
from tgate_export.bulk.prompt_file import PromptFile
from tgate_export.bulk.ray_actor import Actor, ActorArguments
from tgate_export.bulk.record import hash_of_bundle
from tgate_export.bulk.run import Place
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bulk.worker import Result
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.locks import LockedError, locked
from tgate_export.common.errors import TGateError, first_line
from tgate_export.common.install import pip_install
from tgate_export.runtime.backends import select, specs
from tgate_export.runtime.cpus import processors

_MOST_LINES = 512  # of a block, at whose end an actor waits for its last images
_BLOCKS = 8  # an actor, at least, so that all end at about the same time
_TRIES = 3  # to start a Ray of our own
_OBJECT_STORE_BYTES = 100 * 2**20  # of a Ray of our own, in which there is little
_PACKAGES = Path("/sys/devices/system/cpu")
_FOLDERS, _PREFIX = Path("/tmp"), "tgate-ray-"  # as Ray's own: paths of sockets cannot be long
_BEGIN_SECONDS = 60.0  # in which a run has locked its folder


@dataclass(frozen=True)
class Pool:
    """The actors.

    Attributes:
        size: how many.
        num_gpus: of each.
        num_cpus: of each.
    """

    size: int
    num_gpus: int
    num_cpus: int


class RayRunner:
    """Generates on a Ray cluster, of which the end of the block lets go; see `Runner`."""

    def __init__(self, address: str, actors: int | None) -> None:
        """Connect to nothing yet.

        Args:
            address: of the cluster, as Ray takes it; "" for one that is started on this machine.
            actors: how many; one for each GPU or CPU socket when None.

        Raises:
            TGateError: Ray is not installed.
        """
        if find_spec("ray") is None or find_spec("pyarrow") is None:
            raise TGateError(f"Ray Data is not installed: {pip_install('ray')}")
        self._address = address
        self._actors = actors
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def backend(self, settings: BulkSettings, bundle: Bundle) -> str:
        """Connect, and return the name of the backend that the settings' is where actors run."""
        import ray

        del bundle
        self._stack.enter_context(_connected(self._address))
        pool = self._pool(settings)
        task = ray.remote(num_gpus=pool.num_gpus, num_cpus=pool.num_cpus)(_backend_there)
        found, error = ray.get(task.remote(settings))
        if error:
            raise TGateError(error)
        return str(found)

    @contextlib.contextmanager
    def results(
        self, settings: BulkSettings, bundle: Bundle, places: Iterator[Place]
    ) -> Iterator[Iterator[Result]]:
        """Generate lines; the block's end drops what is not done."""
        pool = self._pool(settings)
        options = settings.backend_options
        if specs()[settings.backend].takes("threads", pool.num_cpus) and options.threads is None:
            options = replace(options, threads=pool.num_cpus)
        with PromptFile(settings, bundle.manifest) as file:
            prompts_sha256 = file.sha256()
        actor = ActorArguments(
            replace(settings, backend_options=options),
            prompts_sha256,
            hash_of_bundle(settings.bundle),
        )
        with contextlib.closing(_results(pool, actor, list(places))) as found:
            first = next(found)  # when actors have loaded their engines
            yield itertools.chain([first], found)

    def _pool(self, settings: BulkSettings) -> Pool:
        """Return the actors that the cluster has room for."""
        import ray

        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        spec = specs().get(settings.backend)
        if gpus and (spec is None or spec.device != "cpu"):
            return Pool(self._actors or gpus, num_gpus=1, num_cpus=1)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        size = self._actors or max(1, min(sockets() * len(nodes), cpus))
        return Pool(size, num_gpus=0, num_cpus=max(1, cpus // size))


def sockets() -> int:
    """Return how many CPU sockets this machine has; 1 where nobody says."""
    found = set()
    for file in _PACKAGES.glob("cpu[0-9]*/topology/physical_package_id"):
        with contextlib.suppress(OSError):
            found.add(file.read_text())
    return max(1, len(found))


def _backend_there(settings: BulkSettings) -> tuple[str, str]:
    """Return the name of the settings' backend on the machine where this runs, and an error."""
    try:
        bundle = open_bundle(settings.bundle, check_hashes=False)
        return select(settings.backend, bundle, settings.backend_options).name, ""
    except TGateError as error:
        return "", f"{socket.gethostname()}: {error}"


def _results(
    pool: Pool, actor: ActorArguments, places: Sequence[Place]
) -> Generator[Result, None, None]:
    """Hand lines to actors, and yield what became of them as it comes."""
    import pyarrow
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # every result is on its way when it is there
    lines = max(1, min(_MOST_LINES, -(-len(places) // (_BLOCKS * pool.size))))
    tables = [
        pyarrow.table({"number": numbers, "offset": offsets})
        for first in range(0, len(places), lines)
        for numbers, offsets in [zip(*places[first : first + lines], strict=True)]
    ]
    made = ray.data.from_arrow(tables).map_batches(
        Actor, fn_constructor_args=(actor,), batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=pool.size),
        num_gpus=pool.num_gpus or None, num_cpus=pool.num_cpus,
    )  # fmt: skip
    try:
        for batch in made.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for text in batch["result"].to_pylist():
                yield Result(**json.loads(text))
    except Exception as error:  # of Ray, of Ray Data, and of what they call
        raise TGateError(f"Ray: {type(error).__name__}: {first_line(error)}") from error


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Have a Ray cluster for the block.

    Raises:
        TGateError: there is none at that address, or none can be started.
    """
    import ray

    before = signal.getsignal(signal.SIGTERM)
    with _folder() as folder:
        ours = {
            "num_cpus": processors(), "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False, "_temp_dir": str(folder),
        }  # fmt: skip
        options = {"address": address} if address else {"address": "local", **ours}
        try:
            # Ray lets actors import what is in the working directory, whosever that is.
            with contextlib.chdir(folder), _no_stderr():
                _start(options)
            signal.signal(signal.SIGTERM, before)  # Ray has its own
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Have a folder for a Ray of our own; those that killed runs have left are removed.

    A killed run's processes end with it, for Linux kills them or they miss one another.
    """
    for left in _FOLDERS.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, LockedError):
            found = left.lstat()
            mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if mine and time.time() - found.st_mtime > _BEGIN_SECONDS:
                with locked(left / RUNNING):
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_FOLDERS))
    try:
        with locked(folder / RUNNING):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Let nothing be written to standard error: libraries do that past Python."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _start(options: Mapping[str, Any]) -> None:
    """Start Ray or connect to one; on a busy machine its processes may not find each other."""
    import ray

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for left in reversed(range(_TRIES)):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # of its own, and plain ones
            ray.shutdown()
            if left and options["address"] == "local":
                continue
            raise TGateError(
                f"cannot use Ray at {options['address']}: {first_line(error)}"
            ) from error
        return
