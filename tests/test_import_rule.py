"""Which part of the package may know which: read from the source, and tried without torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tgate_export

ROOT = Path(tgate_export.__file__).parent
HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "polygraphy")
# Room -> the rooms of ours that it may import, itself besides: one way, the lazy imports included.
RUNTIME = ("common", "parameters", "steps", "bundle", "runtime")
MODELS = ("common", "parameters", "steps", "bundle", "adapters", "methods", "families")
BUILD = (*MODELS, "runtime", "export", "samplers", "verify", "compile", "build")
ALLOWED: dict[str, tuple[str, ...]] = {
    "common": (),
    "data": ("common",),
    "parameters": (),
    "steps": (),
    "bundle": ("common", "parameters", "steps"),
    "runtime": RUNTIME,
    "adapters": ("common",),
    "methods": ("common", "steps", "bundle"),
    "families": MODELS,
    "export": MODELS,
    "samplers": ("common", "bundle"),
    "verify": (*MODELS, "runtime", "samplers"),
    "compile": RUNTIME,
    "build": BUILD,
    "embed": RUNTIME,
    "serve": RUNTIME,
    "bulk": RUNTIME,
    "bench": (*RUNTIME, "data"),
    "cli": (*BUILD, "embed", "serve", "bulk", "bench", "data"),
    "__init__": (),  # whatever it names is imported when it is first asked for
    "__main__": ("cli",),
}
WITHOUT_TORCH = (
    "common",
    "parameters",
    "steps",
    "bundle",
    "data",
    "runtime",
    "serve",
    "bulk",
    "__init__",
    "__main__",
)
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def part(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def imports(file: str) -> Iterator[str]:
    """Absolute names of everything a file imports, also inside functions."""
    package = ["tgate_export", *Path(file).parent.parts]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            # `from tgate_export import runtime` imports tgate_export.runtime.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_imports_are_found() -> None:
    # A walker that finds nothing would approve of everything.
    assert "tgate_export.bundle.integrity.open_bundle" in set(imports("runtime/pipeline.py"))
    assert "onnxruntime" in set(imports("runtime/backends/onnxruntime.py"))
    assert {part(file) for file in FILES} == set(ALLOWED)


@pytest.mark.parametrize("file", FILES)
def test_rooms(file: str) -> None:
    rooms = (part(file), *ALLOWED[part(file)])
    allowed = ("tgate_export.__version__.", *(f"tgate_export.{room}." for room in rooms))
    for name in imports(file):
        if name.partition(".")[0] == "tgate_export" and name != "tgate_export":
            lazy = part(file) == "__init__" and name.startswith("tgate_export.")
            assert lazy or f"{name}.".startswith(allowed), f"{file} imports {name}"


def test_rooms_have_no_circles() -> None:
    for room, below in ALLOWED.items():
        assert not [other for other in below if other != room and room in ALLOWED[other]], room


@pytest.mark.parametrize("file", [file for file in FILES if part(file) in WITHOUT_TORCH])
def test_runtime_side_never_imports_heavy_packages(file: str) -> None:
    for name in imports(file):
        assert name.partition(".")[0] not in HEAVY, f"{file} imports {name}"


FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "os.system", "os.popen", "yaml.load"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(module: ast.Module) -> Iterator[str]:
    """Calls that run text or bytes as code."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            if dotted(node.func) in FORBIDDEN_CALLS:
                yield dotted(node.func)
            for keyword in node.keywords:
                value = keyword.value
                on = not (isinstance(value, ast.Constant) and not value.value)
                if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and on:
                    yield str(keyword.arg)


@pytest.mark.parametrize(
    "code", ["eval(x)", "torch.load(f)", "run(c, shell=True)", "np.load(f, allow_pickle=x)"]
)
def test_unsafe_code_is_found(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


@pytest.mark.parametrize("file", FILES)
def test_nothing_runs_data_as_code(file: str) -> None:
    assert not list(unsafe(tree(file)))
    for name in imports(file):
        assert name.partition(".")[0] not in ("pickle", "cPickle", "dill", "cloudpickle", "marshal")


def python(code: str, *arguments: object) -> str:
    """Run code in an interpreter of its own, in which the heavy packages cannot be imported."""
    block = f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\n"
    run = subprocess.run(
        [sys.executable, "-c", block + code, *map(str, arguments)],
        check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_block_works() -> None:
    code = "try:\n    import torch\nexcept ImportError:\n    print('blocked')"
    assert python(code) == "blocked\n"


def test_runtime_is_imported_without_torch() -> None:
    assert python("import tgate_export.runtime as r; print(r.TGatePipeline.__name__)") == (
        "TGatePipeline\n"
    )


def test_generate_without_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    python(
        "from tgate_export.cli import main; main(sys.argv[1:])",
        "generate", tiny_bundle, "--prompt", "a circle", "--steps", 2, "--out", tmp_path / "x.png",
    )  # fmt: skip
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
