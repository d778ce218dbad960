"""The locked versions, those chosen by hand, and the bounds of pyproject.toml agree."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")
LOCKS: dict[str, tuple[str, ...]] = {
    "demo": ("export", "cpu"),
    "docs": ("docs",),
    "gpu": ("export", "bench", "serve", "test"),
    "test": ("export", "cpu", "openvino", "tensorrt-rtx", "bench", "ray", "serve", "test"),
}
# The first versions without holes that were known when this was written.
SAFE = {
    "onnx": "1.21", "onnxruntime": "1.24.3", "onnxruntime-gpu": "1.24.3", "pillow": "12.1.1",
    "torch": "2.10", "transformers": "5.3",
}  # fmt: skip


@dataclass(frozen=True)
class Locked:
    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def version(self) -> Version:
        (pin,) = self.requirement.specifier
        assert pin.operator == "=="
        return Version(pin.version)


def entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield requirements, and their hashes."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        requirement, _, hashes = line.partition(" --hash=")
        yield requirement, hashes


@cache
def lock(name: str, python: str) -> dict[str, Locked]:
    """Return what a lock file installs on Linux, by name."""
    environment = {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
        "platform_machine": "x86_64", "platform_python_implementation": "CPython",
    }  # fmt: skip
    found = {}
    for line, hashes in entries((ROOT / "scripts" / "locks" / f"{name}.txt").read_text()):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            key = canonicalize_name(requirement.name)
            assert key not in found, f"{key} twice for Python {python}"
            found[key] = Locked(requirement, tuple(hashes.split(" --hash=")))
    return found


def declared(*extras: str) -> list[Requirement]:
    listed = [*PROJECT["dependencies"]]
    for extra in extras:
        listed += PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in listed]


def constraints() -> dict[str, Version]:
    found = {}
    for line, _ in entries((ROOT / "scripts" / "constraints.txt").read_text()):
        name, _, version = line.partition("==")
        found[canonicalize_name(name)] = Version(version)
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_what_is_declared(name: str, python: str) -> None:
    locked = lock(name, python)
    for requirement in declared(*LOCKS[name]):
        key = canonicalize_name(requirement.name)
        if key == "torch":  # its CPU build comes from elsewhere
            assert key not in locked
            assert constraints()[key] in requirement.specifier
        else:
            assert locked[key].version in requirement.specifier, requirement
    assert locked["setuptools"] == lock("build", python)["setuptools"]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_the_versions_that_were_chosen(name: str, python: str) -> None:
    chosen = constraints()
    locked = lock(name, python)
    assert {key: entry.version for key, entry in locked.items() if key in chosen} == {
        key: version for key, version in chosen.items() if key in locked
    }
    assert len(chosen.keys() & locked.keys()) > 10


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_of_a_lock_has_a_hash(name: str) -> None:
    for python in PYTHONS:
        for key, entry in lock(name, python).items():
            assert entry.hashes, key
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text.strip()) for text in entry.hashes)


def test_a_lock_is_complete() -> None:
    """It is installed without looking at requirements; what is installed here tells them."""
    locked = lock("test", "3.11")
    without = {"tgate", "deepcache"}  # theirs are of an older diffusers
    for key in locked.keys() - without:
        try:
            needed = metadata.requires(key) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                other = canonicalize_name(requirement.name)
                assert other == "torch" or locked[other].version in requirement.specifier, (
                    f"{key} needs {requirement}"
                )


@pytest.mark.parametrize("package", SAFE)
def test_versions_with_known_holes_are_excluded(package: str) -> None:
    least = Version(SAFE[package])
    listed = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    bounds = [
        specifier
        for requirement in map(Requirement, [*PROJECT["dependencies"], *listed])
        if canonicalize_name(requirement.name) == package
        for specifier in requirement.specifier
        if specifier.operator == ">="
    ]
    assert bounds
    assert all(Version(bound.version) >= least for bound in bounds)
    assert constraints().get(package, least) >= least
    for name in LOCKS:
        for python in PYTHONS:
            assert package not in (found := lock(name, python)) or found[package].version >= least


def test_python_versions_agree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert settings["ruff"]["target-version"] == "py311"
    assert settings["mypy"]["python_version"] == PYTHONS[0]
    named = [text.rpartition(" :: ")[2] for text in PROJECT["classifiers"]]
    assert [text for text in named if text.startswith("3.")] == [*PYTHONS]
    assert f"Python {PYTHONS[0]} or newer" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("file", ["constraints.txt", *(f"locks/{name}.txt" for name in LOCKS)])
def test_no_index_is_named(file: str) -> None:
    text = (ROOT / "scripts" / file).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(--?(extra-)?index|-i\b|--find-links|-f\b)", text, re.MULTILINE)


def test_an_older_python_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    run = subprocess.run(
        ["bash", "-c", ". scripts/venv.sh && venv_ready demo"],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", "PYTHON": str(old), "VENV": str(tmp_path / "venv")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr == f"error: {old} is older than Python 3.11: set PYTHON to a newer one\n"
    assert not (tmp_path / "venv").exists()
