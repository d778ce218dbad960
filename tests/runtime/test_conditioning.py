"""Conditions that the host computes, against diffusers' own."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from tgate_export.runtime.conditioning import MicroConditioning, host_input


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
    found = host_input("time_ids", 2, MicroConditioning.of(height, width))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.repeat(expected.numpy(), 2, axis=0))


def test_resolution_and_aspect_ratio() -> None:
    size = MicroConditioning.of(768, 1344)
    assert host_input("resolution", 2, size).tolist() == [[768, 1344]] * 2
    np.testing.assert_allclose(host_input("aspect_ratio", 2, size), [[768 / 1344]] * 2)
