"""Errors say what to do in the words of whoever reads them; the library knows no command line."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

import tgate_export
from tgate_export.build.build import build_bundle
from tgate_export.build.verify_bundle import verify_bundle
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.manifest import Range
from tgate_export.bundle.plans import PlanSettings
from tgate_export.cli import COMMANDS, cli
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError
from tgate_export.common.hints import Argument, Build, Call, in_python
from tgate_export.compile.request import PlanRequest
from tgate_export.embed.cpp_project import write_cpp_project
from tgate_export.embed.triton.repository import ServingOptions, write_repository
from tgate_export.runtime.backends.base import BackendOptions
from tgate_export.runtime.pipeline import TGatePipeline
from tgate_export.runtime.rebuild import rebuild

ROOT = Path(tgate_export.__file__).parent
LIBRARY = [file for file in sorted(ROOT.rglob("*.py")) if file.parent != ROOT / "cli"]
NAMED = re.compile(rf"(?<![\w-])--[a-z][a-z-]*|tgate-export (?:{'|'.join(COMMANDS)})\b")
# Options of other programs: nvidia-smi, Hugging Face's, docker, prlimit.
FOREIGN = {"--query-gpu", "--format", "--local-dir", "--init", "--pid", "--cpu"}
# Where they may still be named: nowhere else.
LEFT = {
    "bundle/manifest.py": {"tgate-export build"},
    "runtime/pipeline.py": {"tgate-export build", "--json"},
}


def named(source: str) -> set[str]:
    """Options and commands in the texts of a module, docstrings included."""
    texts = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {
        found for text in texts if isinstance(text, str) for found in NAMED.findall(text)
    } - FOREIGN


def test_what_is_named_is_found() -> None:
    source = (
        'def f(x):\n    """See `tgate-export build`."""\n    return f"use --out {x}y--z" + "a-- b"'
    )
    assert named(source) == {"tgate-export build", "--out"}


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_the_library_names_no_options(file: Path) -> None:
    left = LEFT.get(file.relative_to(ROOT).as_posix(), set())
    assert named(file.read_text(encoding="utf-8")) <= left


def arguments_of_hints() -> Iterator[tuple[str, object]]:
    for file in LIBRARY:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Argument":
                name, *value = node.args
                if isinstance(name, ast.Constant):
                    given = value[0].value if value and isinstance(value[0], ast.Constant) else None
                    yield str(name.value), given
    for field in fields(BackendOptions):
        yield field.name, False if field.default is True else None


def options_of(command: click.Command) -> set[str]:
    found = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            part = command.get_command(context, name)
            assert part is not None
            found |= options_of(part)
    return found


def test_every_argument_of_a_hint_is_one_in_python_and_on_the_command_line() -> None:
    calls = (
        build_bundle, verify_bundle, TGatePipeline.from_bundle, TGatePipeline.__call__,
        write_repository, write_cpp_project, PlanRequest, PlanSettings, BackendOptions,
        ServingOptions, BulkSettings,
    )  # fmt: skip
    keywords = {name for call in calls for name in inspect.signature(call).parameters}
    options = options_of(cli)
    found = set(arguments_of_hints())
    assert ("out", None) in found
    for name, value in found:
        assert name in keywords, name
        option = shlex.split(on_command_line(Argument(name, value)))[0]
        assert option in options, f"{name}: {option}"


@pytest.mark.parametrize(
    ("call", "python", "shell"),
    [
        (Argument("out"), "out", "--out"),
        (Argument("precision", "fp32"), "precision='fp32'", "--precision fp32"),
        (Argument("force", True), "force=True", "--force"),
        (Argument("cuda_graphs", False), "cuda_graphs=False", "--no-cuda-graphs"),
        (Argument("out", Path("a b")), "out=Path('a b')", "--out 'a b'"),
        (
            Argument("compute_capabilities", ("8.9", "9.0")),
            "compute_capabilities=('8.9', '9.0')",
            "--sm 8.9 --sm 9.0",
        ),
        (Argument("num_inference_steps", 4), "num_inference_steps=4", "--steps 4"),
        (Build(), "build_bundle", "tgate-export build"),
    ],
)
def test_words(call: Call, python: str, shell: str) -> None:
    error = BundleError("no", "use `", call, "`")
    assert str(error) == f"no: use `{python}`"
    assert error.worded(on_command_line) == f"no: use `{shell}`"
    assert (error.message, error.hint) == ("no", ("use `", call, "`"))


def test_an_error_stays_one_line_of_printable_text_and_survives_a_process() -> None:
    error = InvalidRequestError("a\nb\x1b", "see ", Argument("out", "x\ny"))
    for text in (str(error), error.worded(on_command_line)):
        assert text.isprintable()
    assert str(TGateError("nothing to do")) == "nothing to do"
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(copy), str(copy), copy.hint) == (type(error), str(error), error.hint)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    """A bundle of another shape than the default, in a folder whose name a shell would split."""
    opened = open_bundle(tiny_bundle)
    batch = Range(min=1, opt=2, max=4)
    side = Range(min=8, opt=16, max=32)
    size = opened.manifest.size.model_copy(update={"width": side})
    changed = opened.manifest.model_copy(update={"batch": batch, "size": size})
    return Bundle(Path("my bundles/it's"), changed)


PLANS: dict[str, object] = {"library": "tensorrt-rtx", "compute_capabilities": ("8.9",)}


def test_python_builds_a_bundle_again(bundle: Bundle) -> None:
    call = rebuild(bundle, PLANS, sp_interval=3)
    found: dict[str, Any] = {}
    names = {"Path": Path, "Range": Range, "PlanRequest": PlanRequest, "build_bundle": found.update}
    eval(in_python(call), names)
    inspect.signature(build_bundle).bind(**found)
    size, batch = bundle.manifest.size, bundle.manifest.batch
    assert (found["size"], found["batch"]) == ((size.width, size.height), batch)
    assert (found["out"], found["sp_interval"]) == (bundle.path, 3)
    assert found["plans"] == [PlanRequest("tensorrt-rtx", ("8.9",), batch)]


def test_the_command_line_builds_a_bundle_again(bundle: Bundle) -> None:
    program, name, *words = shlex.split(on_command_line(rebuild(bundle, PLANS, sp_interval=3)))
    assert (program, name) == ("tgate-export", "build")
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    found = command.make_context(name, words).params
    assert (found["size"], found["batch"]) == ("8x16:16x16:32x16", "1:2:4")
    assert (found["out"], found["sp_interval"]) == (bundle.path, 3)
    assert (found["target"], found["sm"]) == (("tensorrt-rtx",), ("8.9",))
