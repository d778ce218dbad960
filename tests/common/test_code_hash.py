"""What our own code is hashed for: what is imported, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tgate_export.common import code_hash
from tgate_export.common.code_hash import PACKAGE, code_sha256, imported_files
from tgate_export.families.registry import FAMILIES, family_module

ROOTS = ("build.assemble", "export.export_unit", "samplers.table_cache", "compile.builder")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of two rooms, with a module that nothing imports."""
    folder = tmp_path / "ours"
    for room in ("room", "other"):
        (folder / room).mkdir(parents=True)
    (folder / "__init__.py").write_text("import ours.unused\n")
    (folder / "room" / "__init__.py").write_text("from ours.unused import everything\n")
    (folder / "room" / "first.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ours import unused\nelse:\n    import ours.untyped\n"
        "def later():\n    from ours.room import second\n    import json\n"
    )
    (folder / "room" / "second.py").write_text("import ours.other as o, oursother.unused\n")
    (folder / "other" / "__init__.py").write_text("from ours.room.first import later\n")  # a circle
    for name in ("unused", "untyped"):
        (folder / f"{name}.py").touch()
    return folder


def test_imports_are_followed(package: Path) -> None:
    assert list(imported_files(package, "room.first")) == [
        "other", "room.first", "room.second", "untyped",
    ]  # fmt: skip
    assert "unused" in imported_files(package, "room")


def test_what_cannot_be_followed_is_an_error(package: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=re.escape("ours has no module room.fourth")):
        imported_files(package, "room.fourth")
    (package / "unused.py").write_text("from . import untyped\n")
    with pytest.raises(NotImplementedError, match="unused has a relative import"):
        imported_files(package, "unused")


@pytest.mark.parametrize("root", ROOTS)
def test_nothing_that_python_imports_is_missing(root: str) -> None:
    code = (
        f"import sys, tgate_export.{root}\n"
        "print(*(name for name in sys.modules if name.startswith('tgate_export.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = {name.removeprefix("tgate_export.") for name in run.stdout.split()}
    # What runs before a module of its folder makes nothing; see `imported_files`.
    bystanders = set(imported_files(PACKAGE, "runtime")) | {"runtime", "common.telemetry"}
    modules = {name for name in names if not PACKAGE.joinpath(*name.split(".")).is_dir()}
    families = map(family_module, FAMILIES.values())  # found by scanning: keys name one of them
    found = set(imported_files(PACKAGE, root, *families))
    assert root in modules
    assert modules - bystanders <= found


def test_what_exporting_imports() -> None:
    """No graph is exported anew for what runs, times, serves or checks it."""
    names = imported_files(PACKAGE, "export.export_unit", "methods.tgate")
    assert {"export.onnx_export", "methods.phases", "families.modules"} <= names.keys()
    rooms = {name.partition(".")[0] for name in names}
    others = {"runtime", "samplers", "verify", "compile", "build", "bench", "embed", "cli", "data"}
    assert not rooms & others


@pytest.mark.parametrize(
    ("root", "inside", "outside"),
    [
        ("export.export_unit", "families.modules", "samplers.tables"),
        ("methods.tgate_v2", "methods.phases", "samplers.tables"),
        ("build.assemble", "verify.graphs", "cli.build"),
        ("samplers.table_cache", "samplers.fit", "methods.phases"),
        ("compile.builder", "compile.checks", "runtime.pipeline"),
    ],
)
def test_what_a_hash_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, inside: str, outside: str
) -> None:
    copy = Path(shutil.copytree(PACKAGE, tmp_path / PACKAGE.name))
    monkeypatch.setattr(code_hash, "PACKAGE", copy)
    seen = []
    for name in (None, outside, inside):
        if name is not None:
            with (copy / f"{name.replace('.', '/')}.py").open("a") as file:
                file.write("# changed\n")
        code_sha256.cache_clear()
        seen.append(code_sha256(root))
    code_sha256.cache_clear()
    assert seen[0] == seen[1] != seen[2]
