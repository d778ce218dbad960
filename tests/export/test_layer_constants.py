"""Where a graph has the weights of layers, by what torch's exporter says, and to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from torch import nn

from tgate_export.common.errors import VerificationError
from tgate_export.export.layer_constants import LayerConstants, following_weights


class Model(nn.Module):
    """Layers of all kinds, three of them equal, and one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        for layer in (self.k, self.v):
            layer.weight.data = self.q.weight.data.clone()
        self.symmetric = nn.Linear(8, 8)
        self.symmetric.weight.data = torch.eye(8)
        self.conv, self.rows = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.unread = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Take [2, 3, 4, 4]."""
        tokens = self.conv(x).flatten(2).transpose(1, 2)  # [2, 4, 8]
        rows = self.rows(tokens[:, 0])  # of two dimensions: a Gemm, of the weight as it is
        return rows, self.q(tokens), 2 * self.k(tokens), 3 * self.v(tokens), self.symmetric(tokens)


def export(model: nn.Module) -> onnx_ir.Model:
    with following_weights(model):
        program = torch.onnx.export(
            model.eval(), (torch.zeros(2, 3, 4, 4),), dynamo=True, opset_version=23, verbose=False
        )
    assert program is not None
    return program.model


@pytest.fixture(scope="module")
def exported() -> tuple[Model, onnx_ir.Model]:
    torch.manual_seed(0)
    model = Model()
    return model, export(model)


@pytest.mark.builds
def test_every_layer_is_found(exported: tuple[Model, onnx_ir.Model]) -> None:
    module, model = exported
    constants = LayerConstants({"unet": module})
    for graph in ("full", "gated"):
        constants.add(graph, model)
    layers = constants.layers()["unet"]
    assert layers.keys() == {"q", "k", "v", "symmetric", "conv", "rows", "unread"}
    for path, layer in layers.items():
        part: Any = module.get_submodule(path)
        assert layer.shape == tuple(part.weight.shape)
        assert [constant.graph for constant in layer.constants] == (
            [] if path == "unread" else ["full", "gated"]
        )
        for constant in layer.constants:
            assert constant.transposed == (path not in ("conv", "rows"))
            tensor = model.graph.initializers[constant.initializer].const_value
            assert tensor is not None
            weight = part.weight.detach().numpy()
            found = tensor.numpy()
            np.testing.assert_array_equal(found.T if constant.transposed else found, weight)
    # Equal weights are constants of their own, each read by its layer's product alone.
    names = [layers[path].constants[0].initializer for path in "qkv"]
    assert len(set(names)) == 3
    scales = []
    for name in names:
        ((product, _),) = model.graph.initializers[name].uses()
        ((after, _),) = product.outputs[0].uses() or ((None, 0),)
        factor = after.inputs[1].const_value if after is not None else None
        scales.append(1.0 if factor is None else float(factor.numpy()))
    assert scales == [1.0, 2.0, 3.0]


@pytest.mark.builds
def test_a_weight_that_is_another_is_noticed(exported: tuple[Model, onnx_ir.Model]) -> None:
    module, model = exported
    before = module.v.weight.data
    other = before.clone()  # the graph may still share the memory of what was exported
    other[3, 4] = torch.nextafter(other[3, 4], torch.tensor(1.0))
    module.v.weight.data = other
    try:
        with pytest.raises(VerificationError, match="graph 'full' has no weight 'val_"):
            LayerConstants({"unet": module}).add("full", model)
    finally:
        module.v.weight.data = before


class Doubled(Model):
    """What a graph has of a weight is something that was made of it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Take [2, 3, 4, 4]."""
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return (tokens @ (self.q.weight + self.k.weight),)


@pytest.mark.builds
def test_what_is_made_of_weights_is_none() -> None:
    module = Doubled()
    constants = LayerConstants({"unet": module})
    with pytest.raises(VerificationError, match="has no weight"):
        constants.add("full", export(module))
