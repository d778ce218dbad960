"""Tokenizer folders that hold too little, and how many tokens a text encoder is given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from tests.families.test_source import edit_json
from tgate_export.common.errors import ModelError
from tgate_export.families.loading import load
from tgate_export.families.random_tokenizers import letter_tokenizer
from tgate_export.families.source import resolve_source
from tgate_export.families.tokenizer_files import check_tokenizer_files


@pytest.fixture
def pipeline(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "mine"))


def split(folder: Path) -> None:
    """Write a tokenizer as transformers 4 did, in two files."""
    file = folder / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    file.unlink()


@pytest.mark.parametrize(
    "missing", [("vocab.json",), ("merges.txt",), ("vocab.json", "merges.txt")]
)
def test_a_clip_folder_without_its_vocabulary(pipeline: Path, missing: tuple[str, ...]) -> None:
    split(pipeline / "tokenizer")
    for name in missing:
        (pipeline / "tokenizer" / name).unlink()
    with pytest.raises(ModelError) as caught:
        resolve_source(str(pipeline))
    assert f"has no vocabulary: it lacks {' and '.join(missing)}, and a" in str(caught.value)


def test_a_clip_folder_of_two_files(pipeline: Path) -> None:
    whole = load(resolve_source(str(pipeline)), "fp32").tokenizers["input_ids"]
    split(pipeline / "tokenizer")
    parts = load(resolve_source(str(pipeline)), "fp32").tokenizers["input_ids"]
    assert parts("a red circle").input_ids == whole("a red circle").input_ids


def test_a_t5_folder_without_its_vocabulary(tmp_path: Path) -> None:
    letter_tokenizer().save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    check_tokenizer_files(tmp_path, "transformers.T5Tokenizer", names)
    names.remove("tokenizer.json")
    with pytest.raises(ModelError, match=r"no vocabulary \(tokenizer\.json, or a SentencePiece"):
        check_tokenizer_files(tmp_path, "transformers.T5Tokenizer", names)
    check_tokenizer_files(tmp_path, "transformers.T5Tokenizer", {*names, "spiece.model"})


def test_a_vocabulary_without_words(pipeline: Path) -> None:
    file = pipeline / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    special = {token["content"] for token in content["added_tokens"]}
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {k: v for k, v in vocabulary.items() if k in special}
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="does not even know the letters of 'cat'"):
        load(resolve_source(str(pipeline)), "fp32")


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"model_max_length": 77}, 77),
        ({"model_max_length": 50}, 50),  # fewer than positions: diffusers pads to these
        ({"model_max_length": 512}, 77),  # more: diffusers fails in the encoder
        ({"model_max_length": 10**30}, 77),  # transformers' way to say that there is no limit
        ({"model_max_length": 1e30}, 77),
        ({"max_len": 50}, 50),
    ],
)
def test_tokens_of_a_text(pipeline: Path, config: dict[str, float], length: int) -> None:
    file = pipeline / "tokenizer" / "tokenizer_config.json"
    kept = json.loads(file.read_text())
    del kept["model_max_length"]
    file.write_text(json.dumps(kept | config))
    source = resolve_source(str(pipeline))
    (spec,) = source.family.tokenizers(source)
    (condition,) = source.conditioning().prompt
    assert spec.max_length == condition.shape[0] == length
    theirs = StableDiffusionPipeline.from_pretrained(pipeline)
    if length == 77 and next(iter(config.values())) != 77:
        theirs.tokenizer.model_max_length = 77
    embeds, _ = theirs.encode_prompt("a fox", "cpu", 1, do_classifier_free_guidance=False)
    assert embeds.shape[1] == length


def test_a_length_that_is_none(pipeline: Path) -> None:
    edit_json(pipeline / "tokenizer" / "tokenizer_config.json", model_max_length="many")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json cannot be read"):
        resolve_source(str(pipeline))


def test_a_text_encoder_that_does_not_read_padding(pipeline: Path) -> None:
    edit_json(pipeline / "text_encoder" / "config.json", use_attention_mask=True)
    with pytest.raises(ModelError, match=r"does not read padding \(use_attention_mask in"):
        resolve_source(str(pipeline))
