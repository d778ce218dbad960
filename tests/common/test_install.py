"""Errors name an install that works from where they are printed."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tgate_export
from tgate_export.common.install import pip_install

PACKAGE = Path(tgate_export.__file__).parent
EXTRAS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


@pytest.mark.parametrize("extra", EXTRAS)
def test_command_names_what_the_extra_names(extra: str) -> None:
    command, verb, *named = shlex.split(pip_install(extra))
    assert (command, verb) == ("pip", "install")
    assert described(named) == described(EXTRAS[extra])


def described(requirements: list[str]) -> set[tuple[str, frozenset[str], str]]:
    parsed = map(Requirement, requirements)
    return {(item.name, frozenset(item.extras), str(item.specifier)) for item in parsed}


def test_several_extras() -> None:
    assert {"torch", "onnxruntime"} <= {
        Requirement(text).name for text in shlex.split(pip_install("export", "cpu"))[2:]
    }


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> list[str]:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", missing)
    assert pip_install("cpu") == "install what its pyproject.toml names under cpu"


def test_no_message_names_an_index_that_has_it_not() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file.name != "install.py":
            found = re.search(r"install '?tgate-export\[", file.read_text())
            assert not found, f"{file}: name what to install with pip_install()"
