r"""A1111's syntax: by hand, and against a reader that recurses."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.oracle.a1111_prompts import BadPromptError, parse
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.prompt_syntax import read_a1111

LESS = 1 / 1.1


def read(text: str) -> list[tuple[str | None, float]]:
    return [(piece.text, piece.weight) for piece in read_a1111(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("a red circle", [("a red circle", 1.0)]),
        ("a (red) circle", [("a ", 1.0), ("red", 1.1), (" circle", 1.0)]),
        ("a [red] circle", [("a ", 1.0), ("red", LESS), (" circle", 1.0)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: +.5 )(x:-1)", [("red", 0.5), ("x", -1.0)]),
        ("((a) b)", [("a", 1.1 * 1.1), (" b", 1.1)]),
        ("((a:2) b:0.5)", [("a", 1.0), (" b", 0.5)]),
        ("([a])", [("a", 1.1 * LESS)]),
        ("a(:2)b()c", [("abc", 1.0)]),
        (r"\(a\) \[b\] \\ \x", [(r"(a) [b] \ x", 1.0)]),
        (r"(a\):1.5)", [("a)", 1.5)]),
        ("a (b:1.0) c", [("a b c", 1.0)]),
        ("16:9, (a:b), [c:d]", [("16:9, ", 1.0), ("a:b", 1.1), (", ", 1.0), ("c:d", LESS)]),
        ("(16:9)", [("16", 9.0)]),
        ("a|b (c|d)", [("a|b ", 1.0), ("c|d", 1.1)]),
        ("a BREAK b", [("a ", 1.0), (None, 1.0), (" b", 1.0)]),
        ("(a BREAK b:1.5)", [("a ", 1.5), (None, 1.0), (" b", 1.5)]),
        ("BREAKBREAK break xBREAK", [("BREAKBREAK break xBREAK", 1.0)]),
        ("BREAK,BREAK", [(None, 1.0), (",", 1.0), (None, 1.0)]),
        ("SAND and ANDY", [("SAND and ANDY", 1.0)]),
        ("(x:0)[y]", [("x", 0.0), ("y", LESS)]),
        ("(x:\u0131nf)", [("x:\u0131nf", 1.1)]),
    ],
)
def test_by_hand(text: str, expected: list[tuple[str | None, float]]) -> None:
    assert read(text) == expected
    assert parse(text) == [pytest.approx(each) for each in expected]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a (b", r"prompt: '(' at character 3 is not closed: write \( for the character itself"),
        ("a [b", r"'[' at character 3 is not closed: write \[ for"),
        ("a) b", r"')' at character 2 closes no '(': write \) for the character itself"),
        ("(a]", "']' at character 3 closes no '['"),
        ("([a)]", "')' at character 4 closes no '('"),
        ("a:1.5)", "')' at character 6 closes no '('"),
        ("[a:b:0.5]", "':0.5]' at character 5: prompt editing cannot be used here: leave it out"),
        ("[a:10]", "':10]' at character 3: prompt editing cannot"),
        ("[a|b]", "'|' in [...] at character 3: alternation cannot be used here"),
        ("a AND b", "AND at character 3: joined prompts cannot be used here: write it small"),
        ("a <lora:x:1>", "prompt: <lora:...> cannot be used here: leave it out"),
        ("(a:nan)", "'nan' at character 4 is no weight: write a number of -100 to 100, such as"),
        ("(a:-inf)", "'-inf' at character 4 is no weight"),
        ("(a:1e30)", "'1e30' at character 4 is no weight"),
        ("(a:1.2.3)", "'1.2.3' at character 4 is no weight"),
        ("(a:.)", "'.' at character 4 is no weight"),
        ("(a:100.5)", "'100.5' at character 4 is no weight"),
        ("((a:90):2)", "'a' has the weight 180: use fewer brackets, 100 is the most"),
        ("(" * 100_000 + "x" + ")" * 100_000, "'x' has the weight inf: use fewer brackets"),
        ("(" * 100_000, "'(' at character 100000 is not closed"),
        ("(x:" + "9" * 100_000 + ")", "9 at character 4 is no weight"),
    ],
)
def test_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_a1111(text)
    message = str(caught.value)
    assert reason in message
    assert message.isprintable()
    assert len(message) < 200


def test_the_field_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"^negative_prompt: '\(' at") as caught:
        read_a1111("(", "negative_prompt")
    assert caught.value.field == "negative_prompt"


def test_deep_brackets_are_no_recursion() -> None:
    assert read("[(" * 50_000 + "x" + ")]" * 50_000) == [("x", pytest.approx(1.0))]
    found = read("(a)(b:1.2)" * 10_000)
    assert len(found) == 20_000
    assert found[-2:] == [("a", 1.1), ("b", 1.2)]


PARTS = ["(", ")", "[", "]", "(", ")", "\\", ":", "|", " ", ",", "a", "é", "BREAK", "AND", "1.3",
         ":1.2)", ":0.5]", "1e3", "nan", "-", "."]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=24).map("".join))
@example("(a:1.3)]")
@example("(:1.2)")
@example("(a\\:1.3)")
def test_as_a_reader_that_recurses(text: str) -> None:
    try:
        expected = parse(text)
    except BadPromptError:
        with pytest.raises(InvalidRequestError) as caught:
            read_a1111(text)
        assert str(caught.value).isprintable()
        return
    found = read(text)
    assert [each for each, _ in found] == [each for each, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])
