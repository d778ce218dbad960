"""The C++ library reads prompts, and splits them into chunks, as Python does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.test_prompt_chunks import tokenizer_of
from tests.runtime.test_prompt_syntax import PARTS
from tests.support.cpp_driver import Driver, assert_alike
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.prompt_chunks import split_chunks
from tgate_export.runtime.prompt_syntax import read_a1111
from tgate_export.runtime.tokenizer import PromptTokenizer

# Three chunks, and about 200 tokens of a tokenizer of letters.
LONG = (
    r"a \(red\) ((circle:1.3) in [blue [sky]]), 16:9, " + "(grass, stone:0.7), " * 2 + "(green "
    r"BREAK tree:1.4) \\ \[x\] " + "y" * 60 + ", " + "z" * 70 + ", (end:-0.5)"
)


def read_alike(driver: Driver, text: str) -> bool:
    """Compare the pieces, or the words of the error; return whether the text can be read."""
    fault: InvalidRequestError | None = None
    try:
        expected = [[piece.text, piece.weight] for piece in read_a1111(text)]
    except InvalidRequestError as error:
        fault = error
    if fault is None:
        assert driver("pieces", text=text) == {"pieces": expected}
        return True
    found = driver.refusal("pieces", text=text)
    assert_alike(found, fault)
    if "'" not in text:  # Python writes texts with one in other quotes
        assert found.text == str(fault)
    return False


@pytest.mark.parametrize(
    ("text", "good"),
    [
        *((text, True) for text in (
            "", " ", "a red circle", "a (red) [circle]", "(red:1.3)", "(red: +.5 )(x:-1)(y:2.)",
            "((a) b)(c [d (e:0.3)]:1.7)", r"\(a\) \[b\] \\ \x \ü", r"(a\):1.5)", "\\",
            "16:9, (a:b), [c:d], (16:9)", "a|b (c|d)", "a BREAK b", "(a BREAK b:1.5)",
            "BREAKBREAK BREAK, xBREAK _BREAK éBREAK ²BREAK BREAK", "e\u0301BREAK \u0301BREAK",
            "SAND and ANDY", "(x:0)[y](:2)()", "(\U0001f600:1.2) é", "(a:\t1.2\n)\x0b(b:1.1\u00a0)",
            "(a:\u0131nf)", "(a:1e)", "(a:1 2)",
            "(a:" + "0" * 400 + "1)", "(a:0." + "0" * 400 + "1)",
            "[(" * 50_000 + "x" + ")]" * 50_000, "(a)(b:1.2)" * 20_000, "BREAK " * 100_000,
            "(" * 100_000 + ":0)" * 100_000, ":1" * 100_000, "a\0b",
        )),
        *((text, False) for text in (
            "a (b", "a [b", "a) b", "é\U0001f600) b", "(a]", "([a)]", "a:1.5)", "(a:1.3)]",
            "[a:b:0.5]", "[a:10]", "[a:" + "1" * 100 + "]", "[a|b]", "([a|b])", "a AND b", "(AND)",
            "a <lora:x:1>", "<LyCo:", "x<hypernet:", "(a:nan)", "(a:-INF)", "(a:+Infinity )",
            "(a:1e30)", "(a:1.2.3)", "(a:.)", "(a:100.5)", "((a:90):2)", "(a:-101)",
            "(" * 100_000, ")" * 100_000, "(" * 100_000 + "x" + ")" * 100_000,
            "(x:" + "9" * 100_000 + ")", "(" * 10_000 + "x" + ":0)" * 2 + ")" * 9_998,
            "(" * 8_000 + "(" + "x:0)" + ")" * 8_000, "((x\n:99):2)",
        )),
    ],
)  # fmt: skip
def test_texts_are_read_as_in_python(driver: Driver, text: str, good: bool) -> None:
    assert read_alike(driver, text) == good


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.sampled_from([*PARTS, "<lora:", "inf", "\u0131", "\t", "\u00a0", "_", "²", "\u0301"])
        | st.characters(max_codepoint=0x2FF), max_size=24,
    ).map("".join)
)  # fmt: skip
def test_any_text_is_read_as_in_python(driver: Driver, text: str) -> None:
    read_alike(driver, text)


def test_the_argument_is_named(driver: Driver) -> None:
    found = driver.refusal("pieces", text="(", field="negative_prompt")
    assert (found.field, found.text[:33]) == (
        "negative_prompt",
        "negative_prompt: '(' at character",
    )


@pytest.fixture(scope="module")
def inversions(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    """A tokenizer of letters with textual inversions of 3, 2, 60 and 80 vectors."""
    added = [
        f"<{name}>" + (f"_{vector}" if vector else "")
        for name, vectors in (("cat", 3), ("dog", 2), ("long", 60), ("huge", 80))
        for vector in range(vectors)
    ]
    return tokenizer_of(tmp_path_factory.mktemp("inversions"), *added)


@pytest.mark.parametrize(
    "text",
    [
        "", "a" * 75, "a" * 76, "a" * 500, "BREAK a BREAK BREAK b BREAK", "a" * 55 + "," + "b" * 30,
        "a" * 54 + "," + "b" * 30, "a" * 60 + "," + "b" * 14 + "," + "c", "a" * 60 + "," + "b" * 99,
        "a" * 60 + ", BREAK " + "b" * 75 + "c", "(" + "a" * 70 + ":1.2)" + "b" * 10, LONG,
        *("a" * before + " (<cat>) b <dog><dog>_1 <cat>_1" for before in (72, 73, 74)),
        "a <huge> b", "a" * 70 + "<huge>" * 2, "a" * 60 + "," + "b" * 14 + "(<long>:1.2) c",
        "<CAT> \u00a0 \x1c (é:1.2) \U0001f600 BREAK \x1c",
        "a, " * 50_000, "(a:1.2)(b:1.3)" * 50_000, "<long> " * 2_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("most", [1, 3])
def test_chunks_are_those_of_python(
    driver: Driver, inversions: PromptTokenizer, tmp_path: Path, text: str, most: int
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(inversions._tokenizer.to_str(), "utf-8")
    expected, left_out = split_chunks(inversions, read_a1111(text), most)
    found = driver("chunks", file=str(file), text=text, room=75, most=most)
    assert found["chunks"] == [[chunk.ids, chunk.weights] for chunk in expected]
    assert found["left_out"] == left_out
    assert 1 <= len(expected) <= most
