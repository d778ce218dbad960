"""Retired words stay away: `retired_words.toml` lists them, and what to write instead."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, CPP = "tgate_export/", "tgate_export/embed/cpp/"
PLAIN = (".cpp", ".hpp", ".h", ".cmake", ".j2")

Kind = Literal["definitions", "names", "text"]

# Where a word of an identifier or a sentence begins and ends: `old_word`, `OldWord`, `ABCWord`.
BEGIN = "(?:(?<![A-Za-z])|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]))"
END = "(?:(?![A-Za-z])|(?<=[a-z])(?=[A-Z]))"
STRING_ENDS = re.compile(r"""^[A-Za-z]*(?:\"{3}|'{3}|["'])|(?:\"{3}|'{3}|["'])$""")


class Piece(NamedTuple):
    """Something that people read: its first line, what it is, and its text."""

    line: int
    kind: Kind
    text: str


@dataclass(frozen=True)
class Word:
    """An entry of the list."""

    pattern: str
    instead: str
    where: tuple[Kind, ...] = ("names", "text")
    allowed: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    cpp: bool = True

    def hits(self, piece: Piece) -> Iterator[tuple[int, str]]:
        """Yield line and text of each place where a piece has the word and should not."""
        if piece.kind not in self.where:
            return
        spans = [
            found.span()
            for phrase in self.allowed
            for found in re.finditer(phrase.replace(" ", r"\s+"), piece.text, re.IGNORECASE)
        ]
        for found in re.finditer(f"{BEGIN}(?i:{self.pattern}){END}", piece.text):
            begin, end = found.span()
            if not any(first <= begin and end <= last for first, last in spans):
                yield piece.line + piece.text.count("\n", 0, begin), found[0]

    def reads(self, file: str) -> bool:
        return not file.startswith(self.files) and (self.cpp or not file.startswith(CPP))


def words() -> list[Word]:
    entries = tomllib.loads((ROOT / "tests/retired_words.toml").read_text())["word"]
    return [
        Word(**{name: tuple(value) if isinstance(value, list) else value
                for name, value in entry.items()})
        for entry in entries
    ]  # fmt: skip


def python_pieces(source: str) -> Iterator[Piece]:
    """Yield definitions, identifiers, strings and comments; those that follow each other as one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield Piece(node.lineno, "definitions", node.name)
    run: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NL:
            continue
        if run and token.type != run[-1].type:
            yield _joined(run)
            run = []
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            run.append(token)
        elif token.type == tokenize.NAME:
            yield Piece(token.start[0], "names", token.string)


def _joined(run: list[tokenize.TokenInfo]) -> Piece:
    """Make one text of strings or comments, each on the line where it is."""
    first, text = run[0].start[0], ""
    for token in run:
        text += "\n" * (token.start[0] - first - text.count("\n"))
        if token.type == tokenize.STRING:  # an escape is no letter of the word after it
            text += re.sub(r"\\[a-z]", "  ", STRING_ENDS.sub("", token.string))
        else:
            text += token.string.lstrip("#")
    return Piece(first, "text", text)


def pieces(file: str) -> list[Piece]:
    source = (ROOT / file).read_text(encoding="utf-8")
    return list(python_pieces(source)) if file.endswith(".py") else [Piece(1, "text", source)]


def files() -> list[str]:
    """The package, its C++ library among it, and the pages; measured results stay as they were."""
    code = (path for path in (ROOT / PACKAGE).rglob("*") if path.suffix in (".py", *PLAIN))
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "engines/README.md"]
    return sorted(path.relative_to(ROOT).as_posix() for path in (*code, *pages))


def found(word: Word, read: dict[str, list[Piece]]) -> Iterator[str]:
    for file in filter(word.reads, read):
        for piece in read[file]:
            for line, text in word.hits(piece):
                yield f"{file}:{line}: {text}: {word.instead}"


@pytest.fixture(scope="module")
def read() -> dict[str, list[Piece]]:
    return {file: pieces(file) for file in files()}


@pytest.mark.parametrize("word", words(), ids=lambda word: word.pattern)
def test_a_retired_word_stays_away(word: Word, read: dict[str, list[Piece]]) -> None:
    hits = list(found(word, read))
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize("word", words(), ids=lambda word: word.pattern)
def test_every_exception_is_needed(word: Word, read: dict[str, list[Piece]]) -> None:
    for name in ("allowed", "files"):
        exceptions: tuple[str, ...] = getattr(word, name)
        for exception in exceptions:
            rest = tuple(other for other in exceptions if other != exception)
            without = replace(word, **{name: rest})  # type: ignore[arg-type]
            assert any(found(without, read)), exception


def test_everything_is_read(read: dict[str, list[Piece]]) -> None:
    assert {"README.md", "docs/generate.md", "tgate_export/__init__.py"} <= read.keys()
    assert any(file.startswith(CPP) and file.endswith(".hpp") for file in read)
    kinds = {piece.kind for piece in read["tgate_export/runtime/pipeline.py"]}
    assert kinds == {"definitions", "names", "text"}


SAMPLE = '''"""Counts a job.

And another Job.
"""
jobs = 1  # the first
# of two comments, whose job
# is this
def run_job(JobState):
    raise ValueError("no such "
                     f"thing\\njob: {jobs}, jobless, Jobs2")
'''


def lines(found: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted(found)


def test_words_are_found_in_python() -> None:
    def hits(word: Word) -> list[tuple[int, str]]:
        return lines(hit for piece in python_pieces(SAMPLE) for hit in word.hits(piece))

    word = Word("jobs?", "")
    names = [(5, "jobs"), (8, "Job"), (8, "job")]
    text = [(1, "job"), (3, "Job"), (6, "job"), (10, "Jobs"), (10, "job"), (10, "jobs")]
    assert hits(word) == sorted(names + text)
    assert hits(replace(word, where=("names",))) == names
    assert hits(replace(word, where=("definitions",))) == [(8, "job")]
    # A phrase may go on in the next line.
    rest = hits(replace(word, where=("text",), allowed=("job is", "another job")))
    assert rest == [hit for hit in text if hit[0] not in (3, 6)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("solver, Solver's solvers", 3),
        ("my_solver SolverTable DPMSolverMultistep kSolver SOLVER_MAX", 5),
        ("dissolver solvering resolvers Absolver", 0),
    ],
)
def test_words_are_whole(text: str, count: int) -> None:
    assert len(list(Word("solvers?", "").hits(Piece(1, "text", text)))) == count


def test_files_are_left_out() -> None:
    word = Word("x", "", files=("tgate_export/verify/",), cpp=False)
    assert not word.reads("tgate_export/verify/graphs.py")
    assert not word.reads("tgate_export/embed/cpp/src/run.cpp")
    assert word.reads("tgate_export/embed/cpp_project.py")
