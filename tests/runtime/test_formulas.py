"""Inputs that the host computes, against diffusers' own."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from tgate_export.runtime.formulas import formula_row

UNTOLD = {"original_size": None, "crops_coords_top_left": None, "target_size": None}


@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (768, 1344)])
def test_time_ids_are_those_of_diffusers(height: int, width: int) -> None:
    class Pipeline:
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(8,), down_block_types=("DownBlock2D",), norm_num_groups=4,
            up_block_types=("UpBlock2D",), mid_block_type=None, addition_embed_type="text_time",
            addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 8,
        )  # fmt: skip

    size = (height, width)
    expected = diffusers.StableDiffusionXLPipeline._get_add_time_ids(
        Pipeline(), size, (0, 0), size, torch.float32, 8
    )
    found = formula_row("time_ids", UNTOLD, height=height, width=width)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[None], expected.numpy())


def test_resolution_and_aspect_ratio() -> None:
    size = {"height": 768, "width": 1344}
    assert formula_row("resolution", {}, **size).tolist() == [768, 1344]
    np.testing.assert_allclose(formula_row("aspect_ratio", {}, **size), [768 / 1344])
