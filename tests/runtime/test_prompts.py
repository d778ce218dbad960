"""Texts or embeddings of a call: completed, repeated, and refused by name when they do not fit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.manifest import VALID
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.prompts import count, negative, positive, repeat

EMBEDS = {"name": "prompt_embeds", "dtype": "float16", "shape": ["batch", 77, 32]}
POOLED = {"name": "text_embeds", "dtype": "float16", "shape": ["batch", 24]}


def manifest(*outputs: dict[str, Any], **changes: Any) -> Manifest:
    made = outputs or (EMBEDS,)
    encoder = VALID["graphs"]["text_encoder"] | {"outputs": made}
    kinds = {"": "prompt", "negative_": "negative_prompt"}
    if changes.get("guidance") == "none":
        del kinds["negative_"]
    read = [
        entry
        | {
            "name": prefix + entry["name"],
            "from": {"graph": "text_encoder", "output": entry["name"], "of": of},
        }
        for entry in made
        for prefix, of in kinds.items()
    ]
    full = VALID["graphs"]["full"] | {"inputs": read}
    graphs = {"text_encoder": encoder, "full": full}
    return Manifest.model_validate_json(json.dumps(VALID | {"graphs": graphs} | changes))


def embeds(prompts: int, value: float = 0.5) -> np.ndarray:
    return np.full((prompts, 77, 32), value, dtype=np.float32)


def test_an_array_is_the_only_output_in_its_dtype() -> None:
    found = positive(manifest(), None, embeds(2))
    assert isinstance(found, dict)
    assert count(found) == 2
    assert found["prompt_embeds"].dtype == np.float16
    np.testing.assert_array_equal(found["prompt_embeds"], embeds(2))


def test_a_mapping_has_every_output() -> None:
    given = {"text_embeds": np.ones((2, 24)), "prompt_embeds": embeds(2)}
    found = positive(manifest(EMBEDS, POOLED), None, given)
    assert list(found) == ["prompt_embeds", "text_embeds"]


def test_copies_of_a_prompt_lie_side_by_side() -> None:
    assert repeat(("a", "b"), 2) == ("a", "a", "b", "b")
    numbers = np.arange(2)[:, None]
    repeated = repeat({"x": numbers}, 2)
    assert isinstance(repeated, dict)
    assert repeated["x"].ravel().tolist() == [0, 0, 1, 1]


def test_one_negative_serves_all_prompts() -> None:
    assert negative(manifest(), "x", None, 3) == ("x", "x", "x")
    found = negative(manifest(), None, embeds(1), 3)
    assert found is not None
    assert count(found) == 3


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "bool"])
@pytest.mark.parametrize("several", [False, True])
def test_tensors_of_torch(dtype: str, several: bool) -> None:
    """As prompt weighting gives them: they may need gradients, or be of types numpy lacks."""
    kind = getattr(torch, dtype)
    values = (3 * torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))).to(kind)
    given: Any = values.requires_grad_() if kind.is_floating_point else values
    found = positive(manifest(), None, {"prompt_embeds": given} if several else given)
    assert isinstance(found, dict)
    expected = values.detach().to(torch.float16).numpy()
    np.testing.assert_array_equal(found["prompt_embeds"], expected)


def test_a_tensor_without_values() -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt_embeds is a Tensor that is no array: "):
        positive(manifest(), None, torch.empty(1, 77, 32, device="meta"))


@pytest.mark.parametrize(
    ("prompt", "given", "reason"),
    [
        (None, None, "prompt must be text"),
        ("x", embeds(1), "either prompt or prompt_embeds, not both"),
        (None, embeds(0), r"shape \[0, 77, 32\]"),
        (None, np.float32(1), r"shape \[\]"),
        (None, np.zeros((1, 77, 48)), r"takes \[prompts, 77, 32\]: use the text encoder of the"),
        (None, embeds(1, np.nan), "not finite in float16"),
        (None, embeds(1, 1e9), "not finite in float16"),
        (None, np.full((1, 77, 32), "x"), "not numbers"),
        (None, {"text_embeds": np.ones((1, 24))}, "has text_embeds, but .* makes prompt_embeds"),
    ],
)
def test_prompts_that_do_not_fit(prompt: Any, given: Any, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        positive(manifest(), prompt, given)


def test_several_outputs_need_a_mapping_of_equal_numbers() -> None:
    of = manifest(EMBEDS, POOLED)
    with pytest.raises(InvalidRequestError, match="makes prompt_embeds, text_embeds: give a map"):
        positive(of, None, embeds(1))
    uneven = {"prompt_embeds": embeds(2), "text_embeds": np.ones((1, 24))}
    with pytest.raises(InvalidRequestError, match="2 of prompt_embeds, 1 of text_embeds"):
        positive(of, None, uneven)


@pytest.mark.parametrize(
    ("changes", "prompt", "given", "reason"),
    [
        ({}, "", embeds(2), "either negative_prompt or negative_prompt_embeds, not both"),
        ({}, None, embeds(3), "3 negative prompts for 2 prompts"),
        ({"guidance": "none"}, None, embeds(1), "negative_prompt_embeds has no effect"),
    ],
)
def test_negatives_that_do_not_fit(changes: Any, prompt: Any, given: Any, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        negative(manifest(**changes), prompt, given, 2)
