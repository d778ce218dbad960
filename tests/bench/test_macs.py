"""Multiply-accumulates counted from ONNX files against PyTorch's own flop counter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.step_plans import tgate_plan
from tgate_export.bench.macs import evaluate_dim, graph_macs, run_macs, solve_dim
from tgate_export.bundle.integrity import open_bundle


@torch.no_grad()
def counted_by_torch(pipeline: Path, batch: int) -> tuple[int, int]:
    """Linear and convolution layers, and attention's own products, of one UNet pass."""
    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet").to("meta")
    inputs = ((batch, 4, 8, 8), (batch,), (batch, 77, 32))
    with FlopCounterMode(display=False) as counter:
        unet(*(torch.zeros(shape, device="meta") for shape in inputs))
    flops = counter.get_flop_counts()["Global"]
    # Attention is the only batched matrix product in a UNet.
    attention = flops.pop(torch.ops.aten.bmm) // 2
    return sum(flops.values()) // 2, attention


@pytest.mark.parametrize("batch", [1, 3])
def test_full_is_two_passes(tiny_bundle: Path, tiny_pipeline_dir: Path, batch: int) -> None:
    found = graph_macs(open_bundle(tiny_bundle), "full", batch=batch)
    assert (found.layers, found.attention) == counted_by_torch(tiny_pipeline_dir, 2 * batch)


def test_run_adds_up_the_schedule(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    full, gated = (graph_macs(bundle, graph) for graph in ("full", "gated"))
    assert gated.total < full.total / 2
    assert run_macs(bundle, tgate_plan(10, 4)).total == 4 * full.total + 6 * gated.total
    assert run_macs(bundle, tgate_plan(10, 10)) == full * 10


def test_dimensions_as_the_exporter_writes_them() -> None:
    symbols = solve_dim("batch", 3) | solve_dim("8*height_steps", 64)
    assert symbols == {"batch": 3, "height_steps": 8}
    assert evaluate_dim("2*batch", symbols) == 6
    assert evaluate_dim("4*height_steps*(batch + 1)//2 - 1", symbols) == 63
    assert solve_dim("7", 7) == {}
    for wrong in ("width", "2**batch", "__import__('os')", "batch(", "1.5"):
        with pytest.raises(ValueError, match="cannot evaluate"):
            evaluate_dim(wrong, symbols)
