"""Where a bundle goes that was given no folder, and what has it built again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import tgate_export
from tgate_export.build import options as options_module
from tgate_export.build.options import build_key, build_sources, check_options, default_folder
from tgate_export.bundle.manifest import Range
from tgate_export.families.source import resolve_source


def fixed(side: int) -> Range:
    return Range(min=side, opt=side, max=side)


@pytest.mark.parametrize(
    ("size", "folder"),
    [
        (None, "engines/tiny"),
        ((fixed(16), fixed(16)), "engines/tiny"),  # the model's own
        ((fixed(32), fixed(16)), "engines/tiny-32x16"),
        ((Range(min=16, opt=16, max=32), fixed(16)), "engines/tiny-16_16_32x16"),
    ],
)
def test_each_size_has_a_folder(
    tiny_pipeline_dir: Path, size: tuple[Range, Range] | None, folder: str
) -> None:
    source = resolve_source(str(tiny_pipeline_dir), "pretrained")
    options = check_options(source, "fp32", size, Range(min=1, opt=1, max=8), None)
    assert default_folder(source, options) == Path(folder)


# What these decide is how a build runs, and what is said of it, or is kept in a bundle by name.
NOT_BUILT = ("__init__.py", "compile/", "runtime/")


def test_every_module_that_a_build_imports_is_in_its_key() -> None:
    package = Path(tgate_export.__file__).parent
    covered = {path.relative_to(package).as_posix() for path in build_sources(package)}
    assert "steps/step_plan.py" in covered
    imported = set()
    for name in covered:
        text = (package / name).read_text()
        for found in re.findall(r"^\s*(?:from|import) tgate_export\.?([\w.]*)", text, re.MULTILINE):
            path = found.replace(".", "/")
            imported.add(f"{path}.py" if (package / f"{path}.py").is_file() else f"{path}/")
    others = {name for name in imported if not name.startswith(NOT_BUILT)} - covered
    assert {name for name in others if not (package / name).is_dir()} == set()
    assert imported - {"/"} > {"steps/step_plan.py", "common/errors.py"}


@pytest.mark.parametrize("changed", ["steps/step_plan.py", "methods/phases.py", "onnx_ir"])
def test_what_a_build_depends_on(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    source = resolve_source(str(tiny_pipeline_dir), "pretrained")
    options = check_options(source, "fp32", None, Range(min=1, opt=1, max=8), None)
    package = Path(shutil.copytree(Path(tgate_export.__file__).parent, tmp_path / "package"))
    monkeypatch.setattr(tgate_export, "__file__", str(package / "__init__.py"))
    key = build_key(source.record(), options)
    assert build_key(source.record(), options) == key
    if changed.endswith(".py"):
        with (package / changed).open("a") as file:
            file.write("# changed\n")
    else:
        version = options_module.metadata.version
        monkeypatch.setattr(
            options_module.metadata, "version",
            lambda name: "0" if name == changed else version(name),
        )  # fmt: skip
    assert build_key(source.record(), options) != key
