"""The phase modules against a UNet that is hooked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tgate_export.errors import ModelError
from tgate_export.gating.conditioning import Condition, Conditioning
from tgate_export.gating.cross_attention import (
    cross_attention_layers,
    group_caches,
    share_weights_copy,
)
from tgate_export.gating.phases import FullPhase, GatedPhase, cache_groups

BATCH, TOKENS, WIDTH = 3, 77, 32


def predict(unet: Any, sample: Any, timestep: Any, conditions: Any) -> Any:
    return unet(sample, timestep, conditions.get("prompt_embeds"), return_dict=False)[0]


TEXT = Conditioning((Condition("prompt_embeds", (TOKENS, WIDTH), negative=True),), predict)


@pytest.fixture(scope="module")
def unet(tiny_pipeline_dir: Path) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(tiny_pipeline_dir / "unet").eval()


@pytest.fixture(scope="module")
def groups(unet: Any) -> Any:
    return cache_groups(unet, TEXT, in_channels=4, latent_height=8, latent_width=8)


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(BATCH, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([801.0, 401.0, 1.0]),
        "prompt_embeds": torch.randn(BATCH, TOKENS, WIDTH, generator=generator),
        "negative_prompt_embeds": torch.randn(BATCH, TOKENS, WIDTH, generator=generator),
        "guidance_scale": torch.tensor([7.5, 1.0, 3.0]),
    }


def hooked(unet: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Run a UNet and record what every `attn2` gives."""
    outputs: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, path=path: outputs.update({path: out}))
        for path, module in unet.named_modules()
        if path.endswith("attn2")
    ]
    result = unet(*args, **kwargs, return_dict=False)[0]
    for handle in handles:
        handle.remove()
    return result, outputs


@torch.no_grad()
def test_full_is_guidance_of_two_runs_and_caches_their_mean(
    unet: Any, groups: Any, inputs: dict[str, torch.Tensor]
) -> None:
    noise_pred, *caches = FullPhase(unet, groups, TEXT)(*inputs.values())
    negative, without = hooked(
        unet, inputs["sample"], inputs["timestep"], inputs["negative_prompt_embeds"]
    )
    positive, with_prompt = hooked(
        unet, inputs["sample"], inputs["timestep"], inputs["prompt_embeds"]
    )
    scale = inputs["guidance_scale"].reshape(-1, 1, 1, 1)
    # Same arithmetic in another batch: only summation order differs.
    torch.testing.assert_close(
        noise_pred, negative + scale * (positive - negative), atol=2e-5, rtol=2e-5
    )
    assert sum(len(group.layers) for group in groups) == len(without)
    for group, cache in zip(groups, caches, strict=True):
        assert cache.shape == (BATCH, len(group.layers), group.tokens, group.width)
        for index, path in enumerate(group.layers):
            mean = (without[path] + with_prompt[path]) / 2
            torch.testing.assert_close(cache[:, index], mean, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gated_is_the_unet_with_attn2_outputs_replaced(
    unet: Any, groups: Any, inputs: dict[str, torch.Tensor]
) -> None:
    generator = torch.Generator().manual_seed(1)
    caches = [
        torch.randn(BATCH, len(g.layers), g.tokens, g.width, generator=generator) for g in groups
    ]
    found = GatedPhase(unet, groups, TEXT)(inputs["sample"], inputs["timestep"], *caches)
    by_path = {
        path: cache[:, index]
        for group, cache in zip(groups, caches, strict=True)
        for index, path in enumerate(group.layers)
    }
    handles = [
        module.register_forward_hook(lambda m, a, out, path=path: by_path[path])
        for path, module in unet.named_modules()
        if path in by_path
    ]
    expected = unet(inputs["sample"], inputs["timestep"], inputs["prompt_embeds"])[0]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gated_has_no_cross_attention_weight(unet: Any, groups: Any) -> None:
    names = [name for name, _ in GatedPhase(unet, groups, TEXT).named_parameters()]
    assert names
    assert not [name for name in names if "attn2" in name]


def test_copies_share_every_weight(unet: Any) -> None:
    copy = share_weights_copy(unet)
    pointers = {parameter.data_ptr() for parameter in unet.parameters()}
    assert {parameter.data_ptr() for parameter in copy.parameters()} == pointers
    assert copy is not unet


def test_building_phases_leaves_the_unet_alone(
    unet: Any, groups: Any, inputs: dict[str, torch.Tensor]
) -> None:
    arguments = (inputs["sample"], inputs["timestep"], inputs["prompt_embeds"])
    with torch.no_grad():
        before = unet(*arguments)[0]
        FullPhase(unet, groups, TEXT)(*inputs.values())
        GatedPhase(unet, groups, TEXT)
        torch.testing.assert_close(unet(*arguments)[0], before, atol=0, rtol=0)


def test_layers_are_grouped_by_tokens_and_width(groups: Any, unet: Any) -> None:
    assert [(g.name, g.tokens, g.downsample, g.width) for g in groups] == [
        ("cross_cache_0", 64, 1, 32),
        ("cross_cache_1", 16, 2, 64),
    ]
    layers = [path for group in groups for path in group.layers]
    assert sorted(layers) == sorted(cross_attention_layers(unet))


def test_odd_sizes_round_up() -> None:
    (group,) = group_caches({"a": (1, 5 * 7, 8)}, latent_height=9, latent_width=13)
    assert group.downsample == 2


def test_token_counts_that_fit_no_level_are_refused() -> None:
    with pytest.raises(ModelError, match="no downsampling"):
        group_caches({"a": (1, 50, 8)}, latent_height=8, latent_width=8)


def test_a_network_without_cross_attention_is_refused() -> None:
    with pytest.raises(ModelError, match="no cross-attention"):
        cross_attention_layers(nn.Sequential(nn.Linear(2, 2)))
