"""Text encoders against transformers, read as diffusers' pipelines read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.support.small_folder import edit_json, save_files
from tgate_export.families.source import resolve_source
from tgate_export.families.stable_diffusion.modules import ClipTextEncoder
from tgate_export.families.stable_diffusion_xl.modules import DualClipTextEncoder


def encoder(cls: type, layers: int, width: int = 32) -> torch.nn.Module:
    torch.manual_seed(layers)
    config = CLIPTextConfig(
        vocab_size=100, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=8, projection_dim=24, eos_token_id=99,
    )  # fmt: skip
    module: torch.nn.Module = cls(config).eval()
    return module


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 99, (2, 8), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_clip_of_one_layer(ids: torch.Tensor) -> None:
    """With no layer to skip, its graph has no input that says how many."""
    model = encoder(CLIPTextModel, 1)
    torch.testing.assert_close(ClipTextEncoder(model, 0)(ids), model(ids)[0])


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_two_clips_of_few_layers(ids: torch.Tensor, layers: int) -> None:
    first = encoder(CLIPTextModel, 3)
    second = encoder(CLIPTextModelWithProjection, layers, 48)
    embeds, pooled = DualClipTextEncoder(first, second, 0)(ids, ids)
    told = [model(ids, output_hidden_states=True) for model in (first, second)]
    expected = torch.cat([output.hidden_states[-2] for output in told], dim=-1)
    torch.testing.assert_close(embeds, expected)
    torch.testing.assert_close(pooled, told[1].text_embeds)


def test_clip_skips_are_never_fewer_than_none(tmp_path: Path) -> None:
    save_files(tmp_path)
    edit_json(tmp_path / "text_encoder" / "config.json", num_hidden_layers=1)
    source = resolve_source(str(tmp_path))
    assert source.family.clip_skips(source) == 0
