"""Chunks of a prompt's tokens, counted by hand: the tokenizer spells words in letters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tgate_export.bundle.manifest import Tokenizer
from tgate_export.export.tokenizer import export_tokenizer
from tgate_export.families.random_tokenizers import byte_tokenizer
from tgate_export.families.spec import TokenizerSpec
from tgate_export.runtime.prompt_chunks import Chunk, filled_up, split_chunks
from tgate_export.runtime.prompt_syntax import read_a1111
from tgate_export.runtime.tokenizer import PromptTokenizer

SPEC = TokenizerSpec("input_ids", "tokenizer", "transformers.CLIPTokenizer", "text_encoder", 77)
START, END = 512, 513


def tokenizer_of(folder: Path, *added: str, **special: str) -> PromptTokenizer:
    theirs = byte_tokenizer(514, 77, **special)
    theirs.add_tokens(list(added))
    (folder / SPEC.component).mkdir()
    file = folder / SPEC.component / "tokenizer.json"
    spec: Tokenizer = export_tokenizer(SPEC, theirs, file)
    return PromptTokenizer(file, spec)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("tokenizer"))


def spelled(tokenizer: PromptTokenizer, chunk: Chunk) -> str:
    return tokenizer.text(chunk.ids).replace(" ", "")


def split(tokenizer: PromptTokenizer, prompt: str, most: int = 8) -> tuple[list[str], str]:
    chunks, left_out = split_chunks(tokenizer, read_a1111(prompt), most)
    assert all(len(chunk.ids) == len(chunk.weights) <= 75 for chunk in chunks)
    return [spelled(tokenizer, chunk) for chunk in chunks], left_out


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [""]),
        ("a" * 75, ["a" * 75]),
        ("a" * 76, ["a" * 75, "a"]),
        ("a" * 200, ["a" * 75, "a" * 75, "a" * 50]),
        # A comma is one of the last 20 tokens, or one too early.
        ("a" * 55 + "," + "b" * 30, ["a" * 55 + ",", "b" * 30]),
        ("a" * 54 + "," + "b" * 30, ["a" * 54 + "," + "b" * 20, "b" * 10]),
        ("a" * 74 + "," + "b", ["a" * 74 + ",", "b"]),
        # The last one counts, and a comma that finds no room begins the next chunk.
        ("a" * 60 + "," + "b" * 5 + "," + "c" * 20, ["a" * 60 + "," + "b" * 5 + ",", "c" * 20]),
        ("a" * 60 + "," + "b" * 14 + "," + "c", ["a" * 60 + "," + "b" * 14, ",c"]),
        # What is moved may fill the next chunk, too.
        ("a" * 60 + "," + "b" * 100, ["a" * 60 + ",", "b" * 75, "b" * 25]),
        ("a BREAK b", ["a", "b"]),
        ("BREAK a BREAK BREAK b BREAK", ["", "a", "", "b"]),
        ("a" * 60 + ", BREAK " + "b" * 75 + "c", ["a" * 60 + ",", "b" * 75, "c"]),
        ("(" + "a" * 70 + ":1.2)" + "b" * 10, ["a" * 70 + "b" * 5, "b" * 5]),
    ],
)
def test_by_hand(tokenizer: PromptTokenizer, prompt: str, expected: list[str]) -> None:
    assert split(tokenizer, prompt) == (expected, "")


@pytest.mark.parametrize(
    ("prompt", "most", "kept", "left_out"),
    [
        ("a" * 75 + "bc (d:1.2) BREAK e", 1, ["a" * 75], "bc  d    e"),
        ("a" * 60 + "," + "b" * 20 + " (c) d", 1, ["a" * 60 + ","], "b" * 20 + "  c d"),
        ("a BREAK b BREAK c", 2, ["a", "b"], "c"),
        ("a BREAK BREAK", 1, ["a"], ""),
    ],
)
def test_what_does_not_fit_is_told(
    tokenizer: PromptTokenizer, prompt: str, most: int, kept: list[str], left_out: str
) -> None:
    found, left = split(tokenizer, prompt, most)
    assert found == kept
    assert left.split() == left_out.split()


def test_weights_go_with_their_tokens(tokenizer: PromptTokenizer) -> None:
    first, second = split_chunks(tokenizer, read_a1111("a" * 74 + "(bcd:1.5)"), 2)[0]
    assert first.weights == [1.0] * 74 + [1.5]
    assert second.weights == [1.5, 1.5]


def test_rows_have_a_start_an_end_and_the_tokenizers_padding(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, pad_token="!")
    (chunk,) = split_chunks(tokenizer, read_a1111("ab"), 1)[0]
    row = tokenizer.framed(chunk.ids)
    assert row.tolist() == [START, *chunk.ids, END, *[tokenizer.spec.pad_token_id] * 73]
    assert tokenizer.spec.pad_token_id not in (START, END)
    np.testing.assert_array_equal(row, tokenizer(["ab"])[0][0])


def test_vectors_of_one_textual_inversion_stay_together(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "<cat>", "<cat>_1", "<cat>_2", "<dog>", "<dog>_1")
    vectors = [tokenizer.groups(name, 99) for name in ("<cat>", "<dog>")]
    assert [len(group) for (group,) in vectors] == [3, 2]
    for before, inside in ((72, 3), (73, 0), (74, 0)):
        chunks, _ = split_chunks(tokenizer, read_a1111("a" * before + " (<cat>) b"), 2)
        assert chunks[0].ids[before:] == vectors[0][0][:inside]
        assert chunks[1].ids[: 3 - inside] == vectors[0][0][inside:]
        assert chunks[1].weights[: 3 - inside] == [1.1] * (3 - inside)
    # What was written out is no group, and neither is a part of one.
    assert [len(group) for group in tokenizer.groups("<cat>_1 <cat>_2 a", 99)] == [1, 1, 1]


def test_vectors_that_find_no_room_after_a_comma(tmp_path: Path) -> None:
    """What moves behind it fills the last chunk, and they are left out with it."""
    names = ("<cat>", *(f"<cat>_{number}" for number in range(1, 65)))
    tokenizer = tokenizer_of(tmp_path, *names)
    prompt = read_a1111("a" * 60 + "," + "b" * 14 + "<cat>" + "c" * 9)
    chunks, left_out = split_chunks(tokenizer, prompt, 1)
    assert [len(chunk.ids) for chunk in chunks] == [61]
    assert left_out.replace(" ", "") == "b" * 14 + "".join(names) + "c" * 9
    assert [len(chunk.ids) for chunk in split_chunks(tokenizer, prompt, 3)[0]] == [61, 14, 74]


@pytest.mark.parametrize(
    ("most", "expected"),
    [(1, [1]), (2, [1, 2]), (3, [1, 3, 3]), (6, [1, 2, 3, 6, 6, 6]), (4, [1, 2, 4, 4])],
)
def test_chunks_fill_up_to_a_divisor(most: int, expected: list[int]) -> None:
    assert [filled_up(chunks, most) for chunks in range(1, most + 1)] == expected


def test_a_prompt_of_100_000_tokens(tokenizer: PromptTokenizer) -> None:
    found, left_out = split(tokenizer, "a, " * 50_000, 2)
    assert found == ["a," * 37 + "a", ",a" * 37 + ","]
    assert len(left_out) > 90_000
    pieces, left_out = split(tokenizer, "(a:1.2)(b:1.3)" * 50_000, 2)
    assert [len(each) for each in pieces] == [75, 75]
    assert len(left_out) > 99_000
