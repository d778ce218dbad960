"""`--quick` leaves out what builds, and runs share what is kept."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import tiers

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("fixtures", "marks", "quick"),
    [
        ((), (), True),
        (("tmp_path", "tiny_pipeline_dir"), (), True),
        (("tiny_bundle",), (), False),
        (("generate", "tiny_bundle_copy", "tiny_bundle"), (), False),
        (("driver", "cpp_build"), (), False),
        ((), ("slow",), False),
        ((), ("builds",), False),
        ((), ("gpu",), True),
    ],
)
def test_what_is_quick(fixtures: tuple[str, ...], marks: tuple[str, ...], quick: bool) -> None:
    item = SimpleNamespace(
        fixturenames=fixtures, get_closest_marker=lambda name: name if name in marks else None
    )
    assert tiers.is_quick(item) == quick  # type: ignore[arg-type]


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """As pytest passes over what is called "build", unless it is told otherwise."""
    folders = {file.parent for file in (ROOT / "tests").rglob("test_*.py")}
    names = {part for folder in folders for part in folder.relative_to(ROOT).parts}
    passed_over = pytestconfig.getini("norecursedirs")
    assert "build" in names
    assert not [name for name in names for each in passed_over if fnmatch(name, each)]


def test_a_quick_run_collects_no_bundle() -> None:
    """A test of one file each that builds, and that does not."""
    files = ("tests/cli/test_generate.py", "tests/common/test_user_cache.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--quick", "--collect-only", "-q", "-n0", *files],
        check=False, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert "tests/common/test_user_cache.py::test_where_the_cache_is" in run.stdout
    assert not re.search(r"test_generate\.py::test_\w*(picture|image|png)", run.stdout)
    assert "deselected" in run.stdout


def test_runs_share_graphs_and_tables_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TGATE_EXPORT_TESTS_CACHE", str(tmp_path / "kept"))
    for name in ("one", "two"):
        tiers.link_cache(tmp_path / name)
        tiers.link_cache(tmp_path / name)  # by another process of the same run
    (tmp_path / "one" / "graphs" / "x").touch()
    assert (tmp_path / "two" / "graphs" / "x").exists()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["graphs", "samplers"]
    monkeypatch.delenv("TGATE_EXPORT_TESTS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    tiers.link_cache(tmp_path / "three")
    assert (tmp_path / "home" / "tgate-export-tests" / "graphs").is_dir()


def test_a_cold_run_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGATE_EXPORT_TESTS_CACHE", "")
    tiers.link_cache(tmp_path / "one")
    assert not (tmp_path / "one").exists()
