"""Token ids against the transformers tokenizer, as diffusers calls it."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import PixArtAlphaPipeline
from diffusers.loaders import TextualInversionLoaderMixin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer, T5Tokenizer

from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.manifest import Tokenizer
from tgate_export.common.errors import BundleError, InvalidRequestError
from tgate_export.export.tokenizer import export_tokenizer
from tgate_export.families.random_tokenizers import byte_tokenizer, letter_tokenizer
from tgate_export.families.spec import TokenizerSpec
from tgate_export.runtime.tokenizer import PromptTokenizer


def ours(bundle: Path) -> PromptTokenizer:
    spec = read_manifest(bundle).tokenizers["input_ids"]
    return PromptTokenizer(bundle / spec.file, spec)


def saved_in(spec: TokenizerSpec, tokenizer: Any, staging: Path) -> Tokenizer:
    """Export a tokenizer to where a bundle has it."""
    (staging / spec.component).mkdir()
    return export_tokenizer(spec, tokenizer, staging / spec.component / "tokenizer.json")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(prompts=st.lists(st.text(max_size=40), min_size=1, max_size=3))
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_equals_transformers(
    tiny_bundle: Path, tiny_pipeline_dir: Path, prompts: list[str]
) -> None:
    theirs = CLIPTokenizer.from_pretrained(tiny_pipeline_dir / "tokenizer")
    expected = theirs(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np"
    )
    ids, mask = ours(tiny_bundle)(prompts)
    assert (ids == expected.input_ids).all()
    assert (mask == expected.attention_mask).all()


def test_long_prompt_is_cut_as_diffusers_does_and_says_so(
    tiny_bundle: Path, tiny_pipeline_dir: Path
) -> None:
    theirs = CLIPTokenizer.from_pretrained(tiny_pipeline_dir / "tokenizer")
    prompt = "x" * 75 + " leftover"
    expected = theirs(prompt, max_length=77, truncation=True, return_tensors="np").input_ids
    with pytest.warns(UserWarning, match="leftover"):
        found, _ = ours(tiny_bundle)([prompt])
    assert (found == expected).all()


PRINTABLE = st.characters(max_codepoint=0x24F, exclude_categories=["Cc"])
SPEC = TokenizerSpec(
    "input_ids", "tokenizer", "transformers.T5Tokenizer", "text_encoder", 20, "mask", lowercase=True
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Not control characters: Python strips some that no tokenizer takes for white space.
@given(prompts=st.lists(st.text(PRINTABLE, max_size=30), min_size=1, max_size=3))
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_t5_equals_diffusers(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    """Lowercased, stripped, padded and masked as PixArt's pipelines do."""
    theirs, folder = letter_tokenizer(), tmp_path_factory.mktemp("t5")
    saved = saved_in(SPEC, theirs, folder)
    prepared = PixArtAlphaPipeline._text_preprocessing(None, prompts, clean_caption=False)
    expected = theirs(
        prepared, padding="max_length", max_length=20, truncation=True, return_tensors="np"
    )
    ids, mask = PromptTokenizer(folder / saved.file, saved)(prompts)
    assert (ids == expected.input_ids).all()
    assert (mask == expected.attention_mask).all()


def test_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    """PixArt's checkpoints have no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("a red circle on a blue background\nan umbrella\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=40,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    saved = saved_in(SPEC, T5Tokenizer.from_pretrained(tmp_path), tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    ids, mask = PromptTokenizer(tmp_path / saved.file, saved)([" A blue  umbrella"])
    expected = [*theirs.encode("a blue umbrella"), saved.eos_token_id]
    assert ids[0, : mask.sum()].tolist() == expected


PROMPTS = ["a <cat> here", "<cat><cat>", "a <Cat>", "<cat>_1", "<cat> <dog> <cat>_2", "plain",
           "<dog>", "<cat>_1_1 <cat>_3", "x" * 70 + " <cat>"]  # fmt: skip


def with_inversions(tokenizer: Any) -> Any:
    """Add two textual inversions, one of three vectors; what looks like a fourth is apart."""
    tokenizer.add_tokens(["<cat>", "<cat>_1", "<cat>_2", "<cat>_4", "<dog>"])
    return tokenizer


@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_textual_inversions_of_several_vectors(tmp_path: Path) -> None:
    theirs = with_inversions(byte_tokenizer(514, 77))
    spec = replace(SPEC, max_length=77, mask=None, lowercase=False)
    saved = saved_in(spec, theirs, tmp_path)
    found, _ = PromptTokenizer(tmp_path / saved.file, saved)(PROMPTS)
    converted = [
        TextualInversionLoaderMixin._maybe_convert_prompt(None, prompt, theirs)
        for prompt in PROMPTS
    ]
    assert converted[0] == "a <cat> <cat>_1 <cat>_2 here"
    expected = theirs(
        converted, padding="max_length", max_length=77, truncation=True, return_tensors="np"
    )
    assert (found == expected.input_ids).all()


def test_t5_takes_every_token_for_itself(tmp_path: Path) -> None:
    """PixArt's pipelines know nothing of textual inversions."""
    theirs = with_inversions(letter_tokenizer())
    saved = saved_in(SPEC, theirs, tmp_path)
    found, _ = PromptTokenizer(tmp_path / saved.file, saved)(PROMPTS[:2])
    expected = theirs(
        PROMPTS[:2], padding="max_length", max_length=20, truncation=True, return_tensors="np"
    )
    assert (found == expected.input_ids).all()


def test_a_broken_file_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer file"):
        PromptTokenizer(broken, read_manifest(tiny_bundle).tokenizers["input_ids"])


def clip_file(bundle: Path) -> Any:
    return json.loads((bundle / "tokenizer" / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def t5_file() -> Any:
    return json.loads(letter_tokenizer().backend_tokenizer.to_str())


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def charsmap(table: bytes) -> dict[str, str]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


LONG = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
HOSTILE: list[tuple[str, str, Any]] = [
    ("clip", "normalizer", {"type": "Sequence", "normalizers": [LONG] * 3}),
    ("clip", "normalizer", None),
    ("clip", "pre_tokenizer", split("(x+x+)+y")),
    ("clip", "pre_tokenizer", {"type": "FixedLength", "length": 0}),
    ("clip", "decoder", {"type": "Strip", "content": "a", "start": 2**60, "stop": 2**60}),
    ("clip", "post_processor", {"type": "TemplateProcessing", "single": [], "pair": []}),
    ("clip", "model|dropout", 1.5),
    ("clip", "model|unk_token", None),
    ("clip", "model|vocab|a</w>", 2**32 - 1),
    ("clip", "model|vocab|a</w>", 1e300),
    ("clip", "model|vocab|a</w>", 0),  # of another token, too
    ("clip", "model|vocab|" + "x" * 1025, 400),
    ("clip", "model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
    ("clip", "added_tokens|0|id", -1),
    ("clip", "added_tokens", [{}] * 5000),
    ("t5", "normalizer", charsmap(b"\xff\xff\xff\xff")),  # a trie of 4 GiB
    ("t5", "normalizer", charsmap(b"")),
    ("t5", "normalizer", charsmap(bytes(3))),
    ("t5", "normalizer", charsmap(b"\x04\0\0\0" + bytes(4) + b"a" * 1000 + b"\0")),
    ("t5", "normalizer", charsmap(b"\x04\0\0\0" + bytes(4) + b"abc")),
    ("t5", "normalizer", {"type": "Sequence", "normalizers": [LONG] * 3}),
    ("t5", "normalizer", {"type": "Precompiled", "precompiled_charsmap": "?"}),
    ("t5", "pre_tokenizer", split("(x+x+)+y")),
    ("t5", "model|vocab", []),
    ("t5", "model|unk_id", 10**6),
    ("t5", "model|vocab|3|1", True),
    ("t5", "post_processor|special_tokens", {}),
]


@pytest.mark.parametrize(("kind", "keys", "value"), HOSTILE)
def test_only_what_a_build_writes(
    tiny_bundle: Path, tmp_path: Path, t5_file: Any, kind: str, keys: str, value: Any
) -> None:
    content = clip_file(tiny_bundle) if kind == "clip" else copy.deepcopy(t5_file)
    spec = read_manifest(tiny_bundle).tokenizers["input_ids"]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    PromptTokenizer(file, spec)  # as it is, it is fine
    inner, (*parents, last) = content, keys.split("|")
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[int(last) if isinstance(inner, list) else last] = value
    file.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"is not a tokenizer file: its ") as caught:
        PromptTokenizer(file, spec)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "\ud83d".encode(errors="surrogatepass"), "[]", "3"]
)
def test_what_is_no_tokenizer_at_all(tiny_bundle: Path, tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError, match="is not a tokenizer file"):
        PromptTokenizer(file, read_manifest(tiny_bundle).tokenizers["input_ids"])


def test_panics_are_errors_of_ours(tiny_bundle: Path, tmp_path: Path, t5_file: Any) -> None:
    """The trie of a table may lead anywhere: the library then panics, which is no Exception."""
    content = copy.deepcopy(t5_file)
    value = (0x1FFFF << 10) | 1 << 9  # the root leads out of the trie
    content["normalizer"] = charsmap(b"\x04\0\0\0" + value.to_bytes(4, "little") + b"a\0")
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    tokenizer = PromptTokenizer(file, read_manifest(tiny_bundle).tokenizers["input_ids"])
    with pytest.raises(
        InvalidRequestError, match="the tokenizer cannot read the prompt: index out"
    ):
        tokenizer(["a red circle"])


def test_a_prompt_that_is_no_text(tiny_bundle: Path) -> None:
    with pytest.raises(InvalidRequestError, match="the tokenizer cannot read the prompt"):
        ours(tiny_bundle)(["\ud800"])
