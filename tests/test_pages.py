"""The pages: links lead somewhere, the site has them all, and a newcomer's is short."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "engines/README.md"]
)
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def prose(page: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.M)


def links(page: str) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if "://" not in link]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site both make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.relative_to(ROOT).as_posix()), flags=re.M)
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings]
    return {re.sub(r"\s", "-", text.strip()) for text in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.is_file(), f"{page}: {link} is no file"
        assert target.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(target), f"{page}: no heading for {link}"


def test_links_are_found() -> None:
    # A pattern that finds nothing would approve of every page.
    assert "docs/benchmarks.md" in links("README.md")
    assert "../engines/README.md#a-run" in links("docs/methods.md")
    assert "a-run" in anchors(ROOT / "engines/README.md")


def navigation(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            ((_, below),) = entry.items()
            yield from navigation([below] if isinstance(below, str) else below)


def test_the_site_has_every_page_once() -> None:
    assert sorted(navigation(CONFIG["nav"])) == PAGES


def test_the_site_loads_nothing_from_elsewhere() -> None:
    assert CONFIG["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript", "extra"} & CONFIG.keys()
    assert not [page for page in PAGES if "```mermaid" in (ROOT / page).read_text()]  # a script
    images = [link for page in PAGES for link in re.findall(r"!\[[^]]*\]\((\S+)\)", prose(page))]
    assert images
    assert not [link for link in images if "://" in link]


@pytest.mark.parametrize("page", PAGES)
def test_lists_are_lists_on_the_site_too(page: str) -> None:
    """Python-Markdown begins a list only after an empty line; GitHub anywhere."""
    blocks = re.split(r"\n\s*\n", prose(page))
    item = re.compile(r" *([*+-]|\d+\.) ")
    for block in blocks:
        lines = block.strip("\n").splitlines()
        if not lines or item.match(lines[0]) or lines[0].startswith(" "):
            continue
        assert not [line for line in lines if item.match(line)], f"{page}: {block}"


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_what_the_reference_names_is_there() -> None:
    """The site is not built in CI; mkdocstrings would not find what has moved."""
    named = re.findall(
        r"^::: (tgate_export\.\S+)$", (ROOT / "docs/python-api.md").read_text(), re.M
    )
    assert len(named) > 10
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_where_things_moved_to_is_there() -> None:
    """The changelog's table: the dotted names of its right column."""
    _, _, table = (ROOT / "CHANGELOG.md").read_text().partition("| in 0.1 | now |\n")
    rows = [line.split(" | ")[1] for line in table.partition("\n\n")[0].splitlines()[1:]]
    modules = [name for row in rows for name in re.findall(r"`(tgate_export(?:\.[a-z_]+)+)`", row)]
    assert len(modules) > 10
    for module in modules:
        importlib.import_module(module)
