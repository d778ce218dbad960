"""SECURITY.md lists what README and docs say about safety, with tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
         "engines/README.md"]  # fmt: skip
# A sentence with one of these is one on safety, and has to be listed.
SAFETY = re.compile(
    r"\b(never (un)?pickle\w*|unpickle\w*|pickles?|sha256 differs|refused by name|telemetry|"
    r"leaves? the bundle|bounded|nothing left behind|leaves nothing|Builds are atomic|damaged|"
    r"safetensors only|hostile|untrusted|authenticat\w+|escapes?|non-root|without root)\b"
)


def plain(text: str) -> str:
    return " ".join(text.split())


def rows() -> list[tuple[str, str, list[str]]]:
    """Sentence, page and tests of every row."""
    _, _, table = (ROOT / "SECURITY.md").read_text().partition("| sentence | page | test |\n")
    found = []
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            break
        sentence, page, tests = (cell.strip() for cell in line.strip("|").split(" | "))
        found.append((plain(sentence), page.strip("`"), re.findall(r"`([^`]+)`", tests)))
    return found


def sentences(page: str) -> list[str]:
    """A page's sentences, without code blocks."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[*|-]|\d+\.) )|\n(?=#)", text)
    return [s for block in blocks for s in re.split(r"(?<=[.:;!?])\s+", plain(block)) if s]


def functions(file: str) -> set[str]:
    found = ast.walk(ast.parse((ROOT / file).read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_row(row: tuple[str, str, list[str]]) -> None:
    sentence, page, tests = row
    assert sentence in plain((ROOT / page).read_text()), f"{page} does not say so"
    assert tests, "no test holds it"


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 30
    assert [f"{file}::{name}" for file, name in named if name not in functions(file)] == []


def test_every_sentence_on_safety_is_listed() -> None:
    listed = {page: [row[0] for row in rows() if row[1] == page] for page in PAGES}
    missing = [
        f"{page}: {sentence}"
        for page in PAGES
        for sentence in sentences(page)
        if SAFETY.search(sentence)
        and not any(known in sentence or sentence in known for known in listed[page])
    ]
    assert not missing, "\n".join(missing)


def test_sentences_are_found() -> None:
    # A pattern that finds nothing would call every page complete.
    assert sum(bool(SAFETY.search(s)) for page in PAGES for s in sentences(page)) >= 10
