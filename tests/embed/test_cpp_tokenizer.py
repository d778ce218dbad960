"""The C++ tokenizer gives the ids of Hugging Face `tokenizers`."""

from __future__ import annotations

import json
import random
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers.loaders import TextualInversionLoaderMixin
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.runtime.test_tokenizer import PROMPTS, with_inversions
from tests.support.cpp_driver import Driver
from tests.support.embeddings import PROMPTS as EMBEDDED
from tests.support.embeddings import embedded
from tgate_export.data import SHAPES_DIR
from tgate_export.families.random_tokenizers import byte_tokenizer

SHAPES = SHAPES_DIR / "tokenizer" / "tokenizer.json"
CLIP_VOCABULARY = 49408
# Assigned in the Unicode version that this Python knows: the libraries agree on those.
ASSIGNED = [
    chr(code)
    for code in range(0x110000)
    if not unicodedata.category(chr(code)).startswith("C") or chr(code).isspace()
]
TEXT = """
    a red circle isn't 's 've I'll DON'T they're we'd I'm 2024 3.14 x²½ Ⅷ naïve ﬁ İstanbul ẞ
    Straße ΑΣ 日本語 한국어 العربية हिन्दी 🇩🇪 ❤️ -- ... ?!? <|startoftext|> <|endoftext|>
    <|ENDOFTEXT|> <|endoftext|>! <| |> < ǅ
"""
WORDS = [
    *TEXT.split(), "e\u0301", "ΑΣ\u0345", "\u1112\u1161\u11ab", "\U0001f469\u200d\U0001f467",
    "\u00a0", "\u2003", "\u200b", "\x85", "\x1c", "\x00", "\ufeff", "\u2126", "\u212a", "\u212b",
    "\u0130", "\u0307",
]  # fmt: skip


def strings(count: int, seed: int) -> list[str]:
    """Return texts of words, of any characters, of marks, and of spaces; the empty one, too."""
    rng = random.Random(seed)
    marks = [c for c in ASSIGNED if unicodedata.category(c).startswith("M")]
    latin = [chr(code) for code in range(0x20, 0x250)]
    spaces = ["\t", "\n", "\r", " ", "\u00a0", "\u2028", "\u3000", "  "]

    def text(index: int) -> str:
        match index % 5:
            case 0:
                parts = rng.choices([*WORDS, *spaces], k=rng.randrange(12))
                return rng.choice(["", " "]).join(parts)
            case 1:
                return "".join(rng.choices(ASSIGNED, k=rng.randrange(1, 24)))
            case 2:
                return "".join(rng.choices([*latin, "'", "<", "|", ">"], k=rng.randrange(1, 60)))
            case 3:
                letters = rng.choices([*latin, *marks], k=rng.randrange(1, 30))
                return "".join(f"{a}{rng.choice(marks)}" for a in letters)
            case _:
                return " ".join(rng.choices(WORDS, k=rng.randrange(1, 9))).swapcase()

    return ["", " ", "\n\t", *(text(index) for index in range(count - 3))]


def english() -> Iterator[str]:
    """Lines of the standard library, which is on every machine, and words to fill a vocabulary."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-m]*.py")):
        yield from path.read_text(encoding="utf-8", errors="replace").splitlines()
    rng = random.Random(0)
    for _ in range(8000):
        yield " ".join("".join(rng.choices("abcdefghijklmnoprstu", k=7)) for _ in range(5))


@pytest.fixture(scope="module")
def clip_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with CLIP's parts and as many tokens as CLIP's, trained here."""
    raw: dict[str, Any] = json.loads(SHAPES.read_text(encoding="utf-8"))
    special = [token["content"] for token in raw["added_tokens"]]
    untrained = Tokenizer(models.BPE(unk_token=special[1], end_of_word_suffix="</w>"))
    like = Tokenizer.from_str(json.dumps(raw))
    untrained.normalizer, untrained.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY, end_of_word_suffix="</w>", special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    untrained.train_from_iterator(english(), trainer)
    trained = json.loads(untrained.to_str())
    ids = trained["model"]["vocab"]
    assert len(ids) == CLIP_VOCABULARY
    raw["model"] = trained["model"]
    for token in raw["added_tokens"]:
        token["id"] = ids[token["content"]]
    # As CLIP's own file: found in normalized text, too.
    raw["added_tokens"][0]["normalized"] = True
    raw["post_processor"]["cls"][1] = ids[special[0]]
    raw["post_processor"]["sep"][1] = ids[special[1]]
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def assert_same_ids(driver: Driver, path: Path, texts: list[str]) -> None:
    theirs = Tokenizer.from_file(str(path))
    found = driver("encode", file=str(path), texts=texts)
    for text, ids, decoded in zip(texts, found["ids"], found["decoded"], strict=True):
        assert ids == theirs.encode(text).ids, ascii(text)
        assert decoded == theirs.decode(ids), ascii(text)


def test_the_strings_are_many_and_varied() -> None:
    texts = strings(2000, 1)
    assert len(texts) == 2000
    assert len(set(texts)) > 1900
    assert {"", " "} < set(texts)
    assert len({unicodedata.category(c) for text in texts for c in text}) > 25


def test_ids_of_shapes(driver: Driver) -> None:
    assert_same_ids(driver, SHAPES, strings(2000, 1))


def test_ids_of_a_vocabulary_of_clips_size(driver: Driver, clip_size: Path) -> None:
    texts = strings(2000, 2)
    lines = [line for line in english() if line][:8000:20]
    assert_same_ids(driver, clip_size, [*texts, *lines])
    theirs = Tokenizer.from_file(str(clip_size))
    assert len({token for line in lines for token in theirs.encode(line).ids}) > 400


def test_every_assigned_character(driver: Driver) -> None:
    texts = ["".join(ASSIGNED[begin : begin + 50]) for begin in range(0, len(ASSIGNED), 50)]
    assert len(ASSIGNED) > 140_000
    assert_same_ids(driver, SHAPES, texts)


def test_an_added_token_that_is_a_word_of_the_vocabulary(driver: Driver, tmp_path: Path) -> None:
    # The padding of SDXL's second tokenizer is "!".
    path = tmp_path / "tokenizer.json"
    path.write_text(byte_tokenizer(514, 77, pad_token="!").backend_tokenizer.to_str(), "utf-8")
    assert_same_ids(driver, path, ["!", "a!b", "!!", "wow! 's!", *strings(200, 3)])


def test_textual_inversions_of_several_vectors(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    theirs = with_inversions(byte_tokenizer(514, 77))
    path.write_text(theirs.backend_tokenizer.to_str(), "utf-8")
    found = driver("encode", file=str(path), texts=PROMPTS)["ids"]
    for prompt, ids in zip(PROMPTS, found, strict=True):
        converted = TextualInversionLoaderMixin._maybe_convert_prompt(None, prompt, theirs)
        assert ids == theirs(converted).input_ids, prompt


@pytest.mark.builds
def test_a_bundle_with_textual_inversions(
    driver: Driver, tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_dir: Path
) -> None:
    made = embedded(tmp_path_factory, tiny_pipeline_dir)
    pipe = made.pipeline(tiny_pipeline_dir)
    file = str(made.bundle / "tokenizer" / "tokenizer.json")
    found = driver("encode", file=file, texts=EMBEDDED)["ids"]
    converted = pipe.maybe_convert_prompt(EMBEDDED, pipe.tokenizer)
    assert found == pipe.tokenizer(converted).input_ids
    run = {"prompt": {"texts": EMBEDDED[:1]}, "num_inference_steps": 2}
    images = [
        driver("run", bundle=str(made.bundle), request=run | changed)["images"]
        for changed in ({}, {"prompt": {"texts": EMBEDDED[3:4]}})
    ]
    assert images[0] != images[1]


def test_a_long_word_takes_no_long_time(driver: Driver) -> None:
    assert_same_ids(driver, SHAPES, ["circle" * 20_000])


def edited(tmp_path: Path, **changes: Any) -> Path:
    raw = json.loads(SHAPES.read_text(encoding="utf-8"))
    for keys, value in changes.items():
        *parents, last = keys.split("__")
        inner = raw
        for key in parents:
            inner = inner[key]
        inner[last] = value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model__type": "Unigram"},
        {"model__dropout": 0.1},
        {"model__byte_fallback": True},
        {"post_processor": {"type": "BertProcessing", "sep": ["x", 1], "cls": ["y", 2]}},
    ],
)
def test_another_kind_is_refused(driver: Driver, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = edited(tmp_path, **changes)
    message = driver.error("encode", file=str(path), texts=["x"])
    assert message.startswith(f"{path} cannot be used here: it has another ")
    assert message.endswith("give token ids or embeddings instead of text")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"model": 3}', '{"model": {"type": "BPE", "vocab": {"a": "b"}}}']
)
def test_what_is_no_tokenizer_is_refused(driver: Driver, tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    assert f"{path} is not a tokenizer file: " in driver.error("encode", file=str(path), texts=[])


def test_a_merge_of_unknown_tokens_is_refused(driver: Driver, tmp_path: Path) -> None:
    path = edited(tmp_path, model__merges=[["circ", "no such token"]])
    assert "token 'circno such token' is not in the vocabulary" in driver.error(
        "encode", file=str(path), texts=[]
    )
