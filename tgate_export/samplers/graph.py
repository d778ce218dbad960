"""The `sampler` graph: one step of any sampler, with the weights as an input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tgate_export.bundle.sampler_table import HISTORY, NUM_WEIGHTS

OPSET = 23
IR_VERSION = 10
_LATENTS: list[str | int] = ["batch", "channels", "height", "width"]
_HISTORY: list[str | int] = ["batch", HISTORY, "channels", "height", "width"]
_WEIGHTS: list[str | int] = ["batch", NUM_WEIGHTS]


def save_sampler_graph(path: Path) -> None:
    """Write the sampler graph, which computes what `bundle.sampler_table.advance` does.

    Inputs, all f32: `sample` [B, C, h, w], `noise_pred` [B, C, h, w], `history` [B, 3, C, h, w]
    (newest first, zeros before the first step), `noise` [B, C, h, w] (zeros for samplers that draw
    none), `weights` [B, 9] (a row of a sampler table for each
    sample, so that samples of one batch may be at different steps, counts and samplers).
    Outputs, all f32: `next_sample`, `denoiser_input` [B, C, h, w], `next_history` [B, 3, C, h, w].
    """
    onnx.save(build_sampler_graph(), path)


def build_sampler_graph() -> onnx.ModelProto:
    """Build the sampler graph; `save_sampler_graph` says what it takes and gives."""
    nodes = [
        helper.make_node("Reshape", ["weights", "weights_shape"], ["w"]),
        helper.make_node(
            "Split",
            ["w", "weights_split"],
            [
                "w_sample",
                "w_noise",
                "w_past",
                "w_push_sample",
                "w_push_noise",
                "w_input",
                "w_drawn",
            ],
            axis=1,
        ),
        # Sums of products and no MatMul: GPUs would run that in TF32, with three digits.
        helper.make_node("Unsqueeze", ["w_past", "last"], ["w_history"]),
        helper.make_node("Mul", ["history", "w_history"], ["weighted_history"]),
        helper.make_node("ReduceSum", ["weighted_history", "one"], ["past"], keepdims=0),
        helper.make_node("Mul", ["sample", "w_sample"], ["from_sample"]),
        helper.make_node("Mul", ["noise_pred", "w_noise"], ["from_noise"]),
        helper.make_node("Mul", ["noise", "w_drawn"], ["drawn"]),
        helper.make_node("Sum", ["from_sample", "from_noise", "past", "drawn"], ["next_sample"]),
        helper.make_node("Mul", ["next_sample", "w_input"], ["denoiser_input"]),
        helper.make_node("Mul", ["sample", "w_push_sample"], ["push_sample"]),
        helper.make_node("Mul", ["noise_pred", "w_push_noise"], ["push_noise"]),
        helper.make_node("Add", ["push_sample", "push_noise"], ["pushed"]),
        helper.make_node("Unsqueeze", ["pushed", "one"], ["newest"]),
        helper.make_node("Slice", ["history", "zero", "kept", "one"], ["older"]),
        helper.make_node("Concat", ["newest", "older"], ["next_history"], axis=1),
    ]
    constants = {
        "weights_shape": [0, NUM_WEIGHTS, 1, 1],
        "weights_split": [1, 1, HISTORY, 1, 1, 1, 1],
        "zero": [0],
        "one": [1],
        "kept": [HISTORY - 1],
        "last": [4],
    }
    graph = helper.make_graph(
        nodes,
        "sampler",
        [
            _tensor("sample", _LATENTS),
            _tensor("noise_pred", _LATENTS),
            _tensor("history", _HISTORY),
            _tensor("noise", _LATENTS),
            _tensor("weights", _WEIGHTS),
        ],
        [
            _tensor("next_sample", _LATENTS),
            _tensor("denoiser_input", _LATENTS),
            _tensor("next_history", _HISTORY),
        ],
        [
            numpy_helper.from_array(np.array(value, np.int64), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(
        graph,
        producer_name="tgate-export",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _tensor(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
