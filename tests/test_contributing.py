"""CONTRIBUTING.md, ARCHITECTURE.md and RELEASING.md name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tgate_export

from .test_import_rule import ALLOWED

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "ARCHITECTURE.md", "RELEASING.md")
# What looks like a path in code: a folder of the repository, or a file at its top.
PATH = re.compile(
    r"(?<![\w/])((?:tgate_export|tests|scripts|docs|engines|\.ci)(?:/[\w.-]+)+|\w+\.(?:md|toml))"
)
ROOMS = {room: below for room, below in ALLOWED.items() if not room.startswith("__")}


def paths(page: str) -> list[str]:
    """Every path in inline code, in code blocks and in links."""
    text = (ROOT / page).read_text()
    code = re.findall(r"```.*?```|`[^`\n]+`|\]\([^)]+\)", text, flags=re.DOTALL)
    return sorted({path for piece in code for path in PATH.findall(piece)})


@pytest.mark.parametrize("page", PAGES)
def test_every_path_is_there(page: str) -> None:
    # Bundles that are built, and what every family has.
    written_later = ("engines/shapes", "engines/sd15", "names.toml")
    missing = [p for p in paths(page) if not (ROOT / p).exists() and p not in written_later]
    assert not missing


def test_paths_are_found() -> None:
    # A pattern that finds nothing would approve of every page.
    assert len(paths("CONTRIBUTING.md")) > 60
    assert {"scripts/test", "tgate_export/runtime/formulas.py", ".ci/run"} <= set(
        paths("CONTRIBUTING.md")
    )
    assert "tgate_export/steps/step_plan.py" in paths("ARCHITECTURE.md")
    assert {"CHANGELOG.md", "scripts/package"} <= set(paths("RELEASING.md"))


def rooms() -> dict[str, set[str]]:
    """Room -> the rooms that it may import, by ARCHITECTURE.md."""
    _, _, table = (ROOT / "ARCHITECTURE.md").read_text().partition("| may import |\n")
    found = {}
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            break
        room, _, below = (cell.strip() for cell in line.strip("|").split("|"))
        found[room.strip("`")] = set(re.findall(r"`(\w+)`", below))
    return found


def test_the_rooms_are_those_of_the_import_rule() -> None:
    assert rooms() == {room: {*below} - {room} for room, below in ROOMS.items()}


def test_the_picture_has_every_room() -> None:
    picture = (ROOT / "docs" / "architecture-rooms.svg").read_text()
    assert set(re.findall(r'class="name"[^>]*>(\w+)<', picture)) == ROOMS.keys()


def test_the_pages_that_name_the_version_agree() -> None:
    version = tgate_export.__version__
    assert f"tgate-triton:{version} " in (ROOT / "docs/triton/kubernetes.yaml").read_text()
    least = version.rpartition(".")[0]
    assert f"find_package(tgate {least} REQUIRED)" in (ROOT / "docs/embed-cpp.md").read_text()
