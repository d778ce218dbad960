"""Token ids against the transformers tokenizer, as diffusers calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from tgate_export.bundle.integrity import read_manifest
from tgate_export.errors import BundleError
from tgate_export.runtime.tokenizer import PromptTokenizer


def ours(bundle: Path) -> PromptTokenizer:
    spec = read_manifest(bundle).tokenizers["input_ids"]
    return PromptTokenizer(bundle / spec.file, spec)


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


def test_a_broken_file_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer file"):
        PromptTokenizer(broken, read_manifest(tiny_bundle).tokenizers["input_ids"])
