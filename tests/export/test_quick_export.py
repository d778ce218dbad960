"""What makes exports quick changes nothing of what they give."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxscript import rewriter
from onnxscript.rewriter import _matcher, rewrite
from torch.onnx._internal import exporter
from torch.onnx._internal.exporter import _core, _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.fx.passes import type_promotion

from tgate_export.export.quick_export import (
    _few_decompositions,
    _known_values,
    _one_registry,
    _quick_matching,
    _without_traces,
)
from tgate_export.export.translations import TRANSLATIONS

SLOW = "cannot be told to {} .*: large models take longer"


class Plain(torch.nn.Module):
    """What denoisers do that torch's exporter takes apart, though it need not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.to(torch.float16).to(torch.float32).to(torch.float32)
        return torch.nn.functional.silu(half.square().mean(dim=1, keepdim=True) + x.to(x.device))


class InPlace(torch.nn.Module):
    """What a graph cannot say as it is written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y.add_(1)
        return y + y.clone().mul_(3)


class Unknown(torch.nn.Module):
    """An operator without a translation of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 - torch.special.xlog1py(x, x.abs())


class Nested(torch.nn.Module):
    """A part that runs in another mode, which is a graph within the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return x.float() * 2


@pytest.mark.builds
@pytest.mark.parametrize(
    ("module", "decomposed"), [(Plain, 0), (InPlace, 1), (Unknown, 1), (Nested, 1)]
)
def test_only_what_has_to_is_decomposed(
    module: type[torch.nn.Module], decomposed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    decompose = _fx_passes.decompose_with_registry

    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return decompose(*arguments)

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", noted)
    usual = export(module())
    assert len(calls) == 1
    with _few_decompositions():
        quick = export(module())
    assert len(calls) == 1 + decomposed
    assert _fx_passes.decompose_with_registry is noted
    assert operators(quick) == operators(usual)
    x = np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)
    found = onnxruntime.InferenceSession(
        quick.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})[0]
    expected = module()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # a few roundings of 32 bits


def export(module: torch.nn.Module) -> onnx.ModelProto:
    """Export a module of x [rows, 4] f32 as denoisers are."""
    with _one_registry():  # which takes longer than all else
        return exported(module)


def exported(module: torch.nn.Module) -> onnx.ModelProto:
    """Export one as torch does."""
    program = torch.onnx.export(
        module.eval(), (torch.zeros(2, 4),), dynamo=True, opset_version=23, input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=8)},), verbose=False,
        custom_translation_table=dict(TRANSLATIONS),
    )  # fmt: skip
    assert program is not None
    return program.model_proto


def operators(model: onnx.ModelProto) -> list[str]:
    """Return the types of a graph's nodes."""
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("decomposing", ["without its module", "of another form"])
def test_decomposing_where_torch_has_other_internals(
    decomposing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SLOW.format("decompose only what it has to")
    if decomposing == "without its module":
        monkeypatch.delattr(exporter, "_fx_passes")
        monkeypatch.setitem(sys.modules, f"{exporter.__name__}._fx_passes", None)
        with pytest.warns(UserWarning, match=slow), _few_decompositions():
            pass
        return
    monkeypatch.setattr(_fx_passes, "decompose_with_registry", lambda *_: "as usual")
    with pytest.warns(UserWarning, match=slow), _few_decompositions():
        assert _core._fx_passes.decompose_with_registry(None, None) == "as usual"


class Promoting(torch.nn.Module):
    """Numbers of several types that meet: what the exporter has to write casts for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves, whole = x.half(), (10 * x).to(torch.int64)
        same = (x + 1.5).sigmoid() * x
        mixed = halves * x + whole / 3 + (whole > 2) * 0.5 + 7 * halves
        return torch.where(whole > 0, same + mixed, halves) + torch.cat([x, x.abs()]).mean()


@pytest.mark.builds
def test_casts_are_written_without_running_what_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    interpreter = type_promotion._TypePromotionInterpreter
    call = interpreter.call_function

    def noted(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
        ran.append(str(target))
        return call(self, target, args, kwargs)

    monkeypatch.setattr(interpreter, "call_function", noted)
    usual = export(Promoting())
    of_usual = [*ran]
    ran.clear()
    with _known_values():
        quick = export(Promoting())
    assert quick == usual
    assert "Cast" in operators(usual)
    # What casts were written for ran, and the casts.
    assert {"aten.mul.Tensor", "prims.convert_element_type.default"} <= set(ran) < set(of_usual)
    assert not {"aten.sigmoid.default", "aten.cat.default"} & set(ran)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32))
    found = onnxruntime.InferenceSession(
        quick.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, Promoting()(x), rtol=2e-3)  # a product in 16 bits


@pytest.mark.builds
def test_translations_are_read_once_and_none_is_left_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    usual = ONNXRegistry.from_torchlib

    def noted(opset_version: int) -> ONNXRegistry:
        made.append(opset_version)
        return usual(opset_version)

    expected = exported(Plain())
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(noted))
    monkeypatch.setattr("tgate_export.export.quick_export._REGISTRIES", {})
    with _one_registry():
        target = torch.ops.aten.silu.default
        first, second = (ONNXRegistry.from_torchlib(23) for _ in range(2))
        first.register_op(target, lambda x: x)
        assert len(first.get_decomps(target)) == len(second.get_decomps(target)) + 1
        assert ONNXRegistry.from_torchlib(23).functions == second.functions
        assert ONNXRegistry.from_torchlib(20).opset_version == 20
        assert exported(Plain()) == expected
    assert made == [23, 20]


@pytest.mark.builds
def test_without_traces_of_the_source() -> None:
    usual = export(Plain())
    with _without_traces():
        quick = export(Plain())

    def without(model: onnx.ModelProto) -> onnx.ModelProto:
        for entry in (*model.graph.node, *model.graph.value_info):
            entry.ClearField("metadata_props")
        return model

    assert __file__ in str(usual)
    assert __file__ not in str(quick)
    assert without(quick) == without(usual)


@pytest.mark.parametrize(
    ("missing", "way", "what"),
    [
        ("torch.onnx._internal.exporter._registration.ONNXRegistry", _one_registry, "read its"),
        ("torch.onnx._internal.fx.passes.type_promotion._TypePromotionInterpreter", _known_values,
         "run no call twice"),
        ("torch.fx.config.do_not_emit_stack_traces", _without_traces, "leave stack traces out"),
    ],
)  # fmt: skip
def test_where_torch_lacks(
    missing: str, way: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(missing)
    with pytest.warns(UserWarning, match=SLOW.format(what)), way():
        pass


def test_quick_matching_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxscript has one pattern of several ends: two slices that are a split."""
    looked_at: list[tuple[bool, str]] = []  # with a pattern of several ends?
    matcher = _matcher.SimplePatternMatcher
    match = matcher.match

    def noted(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        looked_at.append((len(self.pattern.output_nodes) > 1, node.op_type))
        return match(self, model, graph, node, **options)

    monkeypatch.setattr(matcher, "match", noted)
    usual = rewrite(halves())
    assert {(several, name) for several in (True, False) for name in ("Relu", "Slice")} <= set(
        looked_at
    )
    looked_at.clear()
    with _quick_matching():
        quick = rewrite(halves())
    assert {name for several, name in looked_at if several} == {"Slice"}
    assert looked_at.count((False, "Relu")) < 5  # those patterns that end with any operator
    assert matcher.match is noted
    assert quick == usual


def test_matching_where_onnxscript_has_other_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rewriter, "_matcher")
    monkeypatch.setitem(sys.modules, "onnxscript.rewriter._matcher", None)
    with pytest.warns(UserWarning, match=SLOW.format("match quickly")), _quick_matching():
        pass


def test_matching_where_patterns_have_other_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = _matcher.SimplePatternMatcher
    monkeypatch.setattr(matcher, "match", lambda *_: "as usual")
    with pytest.warns(UserWarning, match=SLOW.format("match quickly")), _quick_matching():
        assert matcher.match(SimpleNamespace(pattern=None), None, None, None) == "as usual"


def halves() -> onnx.ModelProto:
    """Return a model of the product of the halves of `relu(x)`, cut by slices."""
    nodes, bounds = [helper.make_node("Relu", ["x"], ["a"])], []
    for name, *values in (("left", 0, 2, 1), ("right", 2, 4, 1)):
        names = [f"{name}_{key}" for key in ("starts", "ends", "axes")]
        bounds += [
            helper.make_tensor(bound, TensorProto.INT64, [1], [value])
            for bound, value in zip(names, values, strict=True)
        ]
        nodes.append(helper.make_node("Slice", ["a", *names], [name]))
    nodes.append(helper.make_node("Mul", ["left", "right"], ["y"]))
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, width])
        for name, width in (("x", 4), ("y", 2), ("a", 4))
    ]
    graph = helper.make_graph(
        nodes, "test", tensors[:1], tensors[1:2], bounds, value_info=tensors[2:]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
