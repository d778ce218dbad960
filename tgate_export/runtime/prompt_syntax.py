r"""Prompts as A1111's web UI reads them: to pieces of text with weights.

`(word)` counts 1.1 times, `[word]` 1 / 1.1 times, `(word:1.3)` 1.3 times; brackets in brackets
multiply. `BREAK` begins a chunk of tokens. `\(`, `\)`, `\[`, `\]` and `\\` are the characters
themselves. engines/README.md has the rules for readers in other languages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from tgate_export.common.errors import InvalidRequestError

LARGEST_WEIGHT = 100.0
_EMPHASIS = {"(": 1.1, "[": 1 / 1.1}
_CLOSES = {")": "(", "]": "["}
# White space, digits and the letters of numbers are ASCII's. The last alternative of each kind
# takes what is no more than a character: every text is read to its end, once.
_TOKEN = re.compile(
    r"(?P<escape>\\[\\()\[\]]?)"
    r"|:[ \t-\r]*(?P<number>[+-]?(?:[.0-9]+(?:[eE][+-]?[0-9]+)?|(?ai:nan|inf(?:inity)?)))[ \t-\r]*"
    r"(?P<ends>[)\]])"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:|]+|[:|])"
)
_WORD = re.compile(r"\b(?:BREAK|AND)\b")
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")


@dataclass(frozen=True)
class Piece:
    """Text that has one weight; or, without text, where a chunk of tokens ends."""

    text: str | None
    weight: float = 1.0


BREAK = Piece(None)


@dataclass
class _Bracket:
    """An open bracket: what it is, where it stands, and where among the parts it opens."""

    character: str
    position: int
    part: int


def read_a1111(prompt: str, field: str = "prompt") -> list[Piece]:
    """Read a prompt; neighbours of the same weight are one piece.

    Args:
        prompt: what somebody wrote.
        field: the argument that it is, which an error names.

    Raises:
        InvalidRequestError: brackets that do not match, weights that are none or too large, and
            what A1111 takes for more than weights and chunks; with its place, counted from 1.
    """
    return _pieces(_parts(prompt, field), field)


# Of a prompt in its order: text, `BREAK`, the multiplier of a bracket that opens there, or None
# where the bracket that was opened last closes.
_Part = str | Piece | float | None


def _parts(prompt: str, field: str) -> list[_Part]:
    """Return what a prompt is made of, every bracket with its multiplier."""
    _refuse_networks(prompt, field)
    parts: list[_Part] = []
    open_: list[_Bracket] = []
    for match in _TOKEN.finditer(prompt):
        if (escape := match["escape"]) is not None:
            parts.append(escape[1:])
        elif (number := match["number"]) is not None:
            end = match["ends"]
            bracket = _closed(open_, end, match.start("ends"), field)
            if end == "]":
                _refuse(field, f"':{number:.40}]'", match.start(), "prompt editing")
            parts[bracket.part] = _weight(number, match.start("number"), field)
            parts.append(None)
        elif (character := match["bracket"]) in _EMPHASIS:
            open_.append(_Bracket(character, match.start(), len(parts)))
            parts.append(_EMPHASIS[character])
        elif character is not None:
            _closed(open_, character, match.start(), field)
            parts.append(None)
        else:
            text = match["text"]
            if text == "|" and open_ and open_[-1].character == "[":
                _refuse(field, "'|' in [...]", match.start(), "alternation")
            parts += _words(text, match.start(), field)
    if open_:
        _refuse_bracket(field, open_[-1].character, open_[-1].position, "is not closed")
    return parts


def _closed(open_: list[_Bracket], character: str, position: int, field: str) -> _Bracket:
    """Return the bracket that another one closes."""
    opens = _CLOSES[character]
    if not open_ or open_[-1].character != opens:
        _refuse_bracket(field, character, position, f"closes no {opens!r}")
    return open_.pop()


def _words(text: str, start: int, field: str) -> list[_Part]:
    """Split text at `BREAK`; refuse `AND`."""
    parts: list[_Part] = []
    first = 0
    for match in _WORD.finditer(text):
        if match[0] == "AND":
            _refuse(field, "AND", start + match.start(), "joined prompts", "write it small")
        parts += [text[first : match.start()], BREAK]
        first = match.end()
    return [*parts, text[first:]]


def _weight(number: str, position: int, field: str) -> float:
    weight = float(number) if _NUMBER.fullmatch(number) else None
    if weight is None or not abs(weight) <= LARGEST_WEIGHT:
        raise InvalidRequestError(
            f"{field}: {number!r:.60} at character {position + 1} is no weight: write a number of "
            f"-{LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}, such as 1.3",
            field=field,
        )
    return weight


def _pieces(parts: list[_Part], field: str) -> list[Piece]:
    """Multiply the brackets' multipliers, the outermost first, and join what has one weight."""
    weights = [1.0]
    joined: list[tuple[list[str] | None, float]] = []
    for part in parts:
        if part is None:
            weights.pop()
        elif isinstance(part, float):
            weights.append(weights[-1] * part)
        elif isinstance(part, Piece):
            joined.append((None, 1.0))
        elif part:
            if not abs(weights[-1]) <= LARGEST_WEIGHT:
                raise InvalidRequestError(
                    f"{field}: {part!r:.60} has the weight {weights[-1]:g}: use fewer brackets, "
                    f"{LARGEST_WEIGHT:g} is the most",
                    field=field,
                )
            texts, weight = joined[-1] if joined else (None, 1.0)
            if texts is not None and weight == weights[-1]:
                texts.append(part)
            else:
                joined.append(([part], weights[-1]))
    return [
        BREAK if texts is None else Piece("".join(texts), weight) for texts, weight in joined
    ] or [Piece("")]


def _refuse_networks(prompt: str, field: str) -> None:
    if match := _NETWORK.search(prompt):
        raise InvalidRequestError(
            f"{field}: {match[0]}...> cannot be used here: leave it out", field=field
        )


def _refuse(
    field: str, found: str, position: int, what: str, remedy: str = "leave it out"
) -> NoReturn:
    raise InvalidRequestError(
        f"{field}: {found} at character {position + 1}: {what} cannot be used here: {remedy}",
        field=field,
    )


def _refuse_bracket(field: str, character: str, position: int, why: str) -> NoReturn:
    raise InvalidRequestError(
        f"{field}: {character!r} at character {position + 1} {why}: write \\{character} for the "
        "character itself",
        field=field,
    )
