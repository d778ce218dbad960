"""The phase modules against a UNet that is hooked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tgate_export.common.errors import ModelError
from tgate_export.methods import tgate_v2
from tgate_export.methods.conditioning import Condition, Conditioning
from tgate_export.methods.cross_attention import (
    CachedOutputs,
    CacheGroup,
    cross_attention_layers,
    group_caches,
    self_attention_layers,
    share_weights_copy,
)
from tgate_export.methods.denoiser_phases import DenoiserPhases, find_phases

BATCH, TOKENS, WIDTH = 3, 77, 32
BLEND, CARRY = torch.tensor([0.5, 1.0, 1.25]), torch.tensor([0.0, 0.5, 1.5])


def predict(unet: Any, sample: Any, timestep: Any, conditions: Any) -> Any:
    return unet(sample, timestep, conditions.get("prompt_embeds"), return_dict=False)[0]


TEXT = Conditioning(
    (Condition("prompt_embeds", (TOKENS, WIDTH), unconditional="negative"),), predict
)


@pytest.fixture(scope="module")
def unet(tiny_pipeline_dir: Path) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(tiny_pipeline_dir / "unet").eval()


@pytest.fixture(scope="module")
def phases(unet: Any) -> DenoiserPhases:
    return phases_of(unet, "full", "gated")


@pytest.fixture(scope="module")
def all_phases(unet: Any) -> DenoiserPhases:
    return phases_of(unet, *tgate_v2.METHOD.phases)


def phases_of(unet: Any, *names: str) -> DenoiserPhases:
    return find_phases(
        unet, tgate_v2.METHOD, names, TEXT, channels=4,
        sides={"latent_height": 8, "latent_width": 8, "height": 16, "width": 16},
    )  # fmt: skip


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(BATCH, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([801.0, 401.0, 1.0]),
        "prompt_embeds": torch.randn(BATCH, TOKENS, WIDTH, generator=generator),
        "negative_prompt_embeds": torch.randn(BATCH, TOKENS, WIDTH, generator=generator),
        "guidance_scale": torch.tensor([7.5, 1.0, 3.0]),
        "cache_blend": BLEND,
    }


def hooked(unet: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Run a UNet and record what every `attn1` and `attn2` gives."""
    outputs: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, path=path: outputs.update({path: out}))
        for path, module in unet.named_modules()
        if path.endswith(("attn1", "attn2"))
    ]
    result = unet(*args, **kwargs, return_dict=False)[0]
    for handle in handles:
        handle.remove()
    return result, outputs


@torch.no_grad()
def test_pruned_unet_without_a_middle_block(inputs: dict[str, torch.Tensor]) -> None:
    """As distilled models (BK-SDM) have it."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    pruned = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4,
        cross_attention_dim=WIDTH, norm_num_groups=8,
    ).eval()  # fmt: skip
    phases = phases_of(pruned, "full", "gated")
    sample, timestep, text, negative, scales, blend = inputs.values()
    noise_pred, *caches = phases.module(pruned, "full")(*inputs.values())
    without, _ = hooked(pruned, sample, timestep, negative)
    with_prompt, _ = hooked(pruned, sample, timestep, text)
    scale = inputs["guidance_scale"].reshape(-1, 1, 1, 1)
    expected = without + scale * (with_prompt - without)
    torch.testing.assert_close(noise_pred, expected, atol=2e-5, rtol=2e-5)
    assert sum(len(group.layers) for group in phases.groups) == 3
    gated = phases.module(pruned, "gated")(sample, timestep, scales, blend, CARRY, *caches)[0]
    assert gated.shape == sample.shape


@torch.no_grad()
def test_full_is_guidance_of_two_runs_and_caches_their_blend(
    unet: Any, phases: DenoiserPhases, inputs: dict[str, torch.Tensor]
) -> None:
    noise_pred, *caches = phases.module(unet, "full")(*inputs.values())
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
    assert sum(len(group.layers) for group in phases.groups) == len(without) / 2
    *caches, delta = caches
    torch.testing.assert_close(delta, positive - negative, atol=2e-5, rtol=2e-5)
    for group, cache in zip(attention(phases), caches, strict=True):
        assert cache.shape == (BATCH, len(group.layers), group.tokens, group.width)
        for index, path in enumerate(group.layers):
            expected = blended(without[path], with_prompt[path])
            torch.testing.assert_close(cache[:, index], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_full_keeps_self_attention_of_both_passes_and_its_blend(
    unet: Any, all_phases: DenoiserPhases, inputs: dict[str, torch.Tensor]
) -> None:
    _, *caches = all_phases.module(unet, "full")(*inputs.values())
    _, without = hooked(
        unet, inputs["sample"], inputs["timestep"], inputs["negative_prompt_embeds"]
    )
    _, with_prompt = hooked(unet, inputs["sample"], inputs["timestep"], inputs["prompt_embeds"])
    for group, cache in zip(attention(all_phases), caches[:-1], strict=True):
        assert (group.passes == 2) == (group.kind == "self_passes")
        for index, path in enumerate(group.layers):
            assert path.endswith("attn2" if group.kind == "cross_cache" else "attn1")
            if group.passes is None:
                found, expected = cache[:, index], blended(without[path], with_prompt[path])
            else:
                found = cache[:, :, index]
                expected = torch.stack([without[path], with_prompt[path]], dim=1)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def replaced(unet: nn.Module, by_path: dict[str, torch.Tensor], *args: Any) -> Any:
    """Run a UNet with the outputs of these modules replaced; record what the others give."""
    handles = [
        module.register_forward_hook(lambda m, a, out, path=path: by_path[path])
        for path, module in unet.named_modules()
        if path in by_path
    ]
    try:
        return hooked(unet, *args)
    finally:
        for handle in handles:
            handle.remove()


def attention(phases: DenoiserPhases) -> list[CacheGroup]:
    return [group for group in phases.groups if isinstance(group, CacheGroup)]


def blended(unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    weight = BLEND.reshape(-1, 1, 1)
    return (1 - weight) * unconditional + weight * conditional


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_blend_of_a_half_is_the_official_mean_bit_for_bit(dtype: torch.dtype) -> None:
    """Also of what is so small that half of it cannot be represented."""
    (group,) = group_caches("cross_cache", {"a": (1, 64, 8)}, 8, 8)
    box, random = CachedOutputs(), torch.Generator().manual_seed(0)
    halves = torch.randn(4, 64, 8, generator=random) * 10 ** torch.linspace(-8, 3, 64)[:, None]
    box.values["a"] = halves.to(dtype)
    half = torch.full((2,), 0.5)
    found = group.stack(box, 2, 2, (2 - 2 * half, 2 * half))[:, 0]
    unconditional, conditional = box.values["a"].chunk(2)
    assert torch.equal(found, (unconditional + conditional) / 2)


@torch.no_grad()
def test_gated_adds_what_is_carried(
    unet: Any, phases: DenoiserPhases, inputs: dict[str, torch.Tensor]
) -> None:
    module, (*caches, _) = phases.module(unet, "gated"), random_caches(phases.reads("gated"))
    delta = torch.randn(inputs["sample"].shape, generator=torch.Generator().manual_seed(2))
    sample, timestep, scales = (inputs[name] for name in ("sample", "timestep", "guidance_scale"))
    zero = torch.zeros(BATCH)
    without = module(sample, timestep, scales, BLEND, zero, *caches, delta)[0]
    found = module(sample, timestep, scales, BLEND, CARRY, *caches, delta)[0]
    expected = without + (CARRY * (scales - BLEND)).reshape(-1, 1, 1, 1) * delta
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    # To carry nothing is exact, whatever there is.
    assert torch.equal(
        without, module(sample, timestep, scales, BLEND, zero, *caches, 1e30 * delta)[0]
    )


@torch.no_grad()
def test_one_pass_has_nothing_to_blend(unet: Any, inputs: dict[str, torch.Tensor]) -> None:
    single = find_phases(
        unet, tgate_v2.METHOD, ("full", "gated"), TEXT.guided_by("none"), channels=4,
        sides={"latent_height": 8, "latent_width": 8, "height": 16, "width": 16},
    )  # fmt: skip
    assert single.inputs("full") == ("prompt_embeds",)
    assert single.inputs("gated") == ()
    assert {group.kind for group in single.groups} == {"cross_cache"}


def random_caches(groups: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(
            BATCH, *([g.passes] if g.passes else []), len(g.layers), g.tokens, g.width,
            generator=generator,
        )
        if isinstance(g, CacheGroup)
        else torch.zeros(BATCH, 4, 8, 8)
        for g in groups
    ]  # fmt: skip


@pytest.mark.parametrize("phase", ["gated", "gated_reuse"])
@torch.no_grad()
def test_gated_is_the_unet_with_attention_outputs_replaced(
    unet: Any, all_phases: DenoiserPhases, inputs: dict[str, torch.Tensor], phase: Any
) -> None:
    module = all_phases.module(unet, phase)
    caches = random_caches(all_phases.reads(phase))
    numbers = (inputs["guidance_scale"], BLEND, CARRY)
    found, *written = module(inputs["sample"], inputs["timestep"], *numbers, *caches)
    by_path = {
        path: cache[:, index]
        for group, cache in zip(all_phases.reads(phase), caches, strict=True)
        for index, path in enumerate(group.layers)
    }
    assert len(by_path) == (7 if phase == "gated" else 14)
    expected, outputs = replaced(
        unet, by_path, inputs["sample"], inputs["timestep"], inputs["prompt_embeds"]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(written) == (2 if phase == "gated" else 0)
    for group, cache in zip(all_phases.writes(phase), written, strict=True):
        for index, path in enumerate(group.layers):
            torch.testing.assert_close(cache[:, index], outputs[path], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_full_reuse_is_guidance_of_two_runs_with_their_own_self_attention(
    unet: Any, all_phases: DenoiserPhases, inputs: dict[str, torch.Tensor]
) -> None:
    module = all_phases.module(unet, "full_reuse")
    caches = random_caches(all_phases.reads("full_reuse"))
    (found,) = module(*list(inputs.values())[:-1], *caches)  # it writes no cache to blend
    runs = []
    for half, embeds in enumerate(("negative_prompt_embeds", "prompt_embeds")):
        by_path = {
            path: cache[:, half, index]
            for group, cache in zip(all_phases.reads("full_reuse"), caches, strict=True)
            for index, path in enumerate(group.layers)
        }
        assert len(by_path) == 7
        runs.append(
            replaced(unet, by_path, inputs["sample"], inputs["timestep"], inputs[embeds])[0]
        )
    negative, positive = runs
    scale = inputs["guidance_scale"].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(
        found, negative + scale * (positive - negative), atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize(
    ("phase", "attention"),
    [("full", {"attn1", "attn2"}), ("full_reuse", {"attn2"}), ("gated", {"attn1"}),
     ("gated_reuse", set())],
)  # fmt: skip
def test_what_is_read_from_a_cache_needs_no_weight(
    unet: Any, all_phases: DenoiserPhases, phase: Any, attention: set[str]
) -> None:
    names = [name for name, _ in all_phases.module(unet, phase).named_parameters()]
    assert {name for name in ("attn1", "attn2") if any(name in path for path in names)} == attention


def test_gated_has_no_cross_attention_weight(unet: Any, phases: DenoiserPhases) -> None:
    names = [name for name, _ in phases.module(unet, "gated").named_parameters()]
    assert names
    assert not [name for name in names if "attn2" in name]


def test_copies_share_every_weight(unet: Any) -> None:
    copy = share_weights_copy(unet)
    pointers = {parameter.data_ptr() for parameter in unet.parameters()}
    assert {parameter.data_ptr() for parameter in copy.parameters()} == pointers
    assert copy is not unet


def test_building_phases_leaves_the_unet_alone(
    unet: Any, phases: DenoiserPhases, inputs: dict[str, torch.Tensor]
) -> None:
    arguments = (inputs["sample"], inputs["timestep"], inputs["prompt_embeds"])
    with torch.no_grad():
        before = unet(*arguments)[0]
        phases.module(unet, "full")(*inputs.values())
        phases.module(unet, "gated")
        torch.testing.assert_close(unet(*arguments)[0], before, atol=0, rtol=0)


def test_layers_are_grouped_by_tokens_and_width(phases: DenoiserPhases, unet: Any) -> None:
    assert [(g.name, g.tokens, g.downsample, g.width) for g in attention(phases)] == [
        ("cross_cache_0", 64, 1, 32),
        ("cross_cache_1", 16, 2, 64),
    ]
    layers = [path for group in phases.groups for path in group.layers]
    assert sorted(layers) == sorted(cross_attention_layers(unet))


def test_odd_sizes_round_up() -> None:
    (group,) = group_caches("cross_cache", {"a": (1, 5 * 7, 8)}, 9, 13)
    assert group.downsample == 2


def test_token_counts_that_fit_no_level_are_refused() -> None:
    with pytest.raises(ModelError, match="no downsampling"):
        group_caches("cross_cache", {"a": (1, 50, 8)}, 8, 8)


def test_self_attention_with_a_residual_inside_is_refused() -> None:
    from diffusers.models.attention_processor import Attention

    block = nn.ModuleDict({"attn": Attention(8, residual_connection=True)})
    with pytest.raises(
        ModelError, match=r"layer attn .*residual.*sp_interval=1 and fi_interval=1$"
    ):
        self_attention_layers(block)
    with pytest.raises(ModelError, match="no self-attention"):
        self_attention_layers(nn.Linear(2, 2))


def test_a_network_without_cross_attention_is_refused() -> None:
    with pytest.raises(ModelError, match="no cross-attention"):
        cross_attention_layers(nn.Sequential(nn.Linear(2, 2)))
