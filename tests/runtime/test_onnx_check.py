"""A graph whose data lies anywhere but in it or in the bundle's weights reaches no engine."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.hostile import relist
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.common.errors import BundleError
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.onnx_check import check_model, read_graph
from tgate_export.runtime.backends.onnx_file import parse_model
from tgate_export.runtime.plan import BindingPlan

MEMORY = "*/_ORT_MEM_ADDR_/*"  # in process, for ONNX Runtime and OpenVINO
Edit = Callable[[onnx.ModelProto], None]


def outside(
    location: str = "secret.bin", offset: object = 0, length: object = 64, **fields: Any
) -> TensorProto:
    """A tensor [16] f32 whose data is said to lie elsewhere."""
    fields = {"name": "w", "data_type": TensorProto.FLOAT, "dims": (16,)} | fields
    tensor = TensorProto(data_location=TensorProto.EXTERNAL, **fields)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model(
    nodes: list[onnx.NodeProto],
    initializer: tuple[TensorProto, ...] = (),
    sparse: tuple[onnx.SparseTensorProto, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [16])
    graph = helper.make_graph(nodes, "g", [], [y], initializer, sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def places(tensor: TensorProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield a model for every place where ONNX allows a tensor."""
    node, ints = helper.make_node, TensorProto.INT64
    out = [helper.make_tensor_value_info("o", TensorProto.FLOAT, [16])]
    constant = node("Constant", [], ["y"], value=tensor)
    yield "initializer", model([node("Identity", ["w"], ["y"])], (tensor,))
    yield "attribute", model([constant])
    several = node("Constant", [], ["y"])
    several.attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    yield "attribute of several", model([several])
    hidden = node("Constant", [], ["y"], value_float=1.0)
    hidden.attribute[0].t.CopyFrom(tensor)
    yield "attribute of another type", model([hidden])
    whether = node(
        "Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True])
    )
    body = helper.make_graph([node("Identity", ["w"], ["o"])], "b", [], out, [tensor])
    yield (
        "initializer of a body",
        model([whether, node("If", ["c"], ["y"], then_branch=body, else_branch=body)]),
    )
    body = helper.make_graph([node("Constant", [], ["o"], value=tensor)], "b", [], out)
    branch = node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    yield "attribute in a body", model([whether, branch])
    bodies = node("Many", [], ["y"])
    bodies.attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS).graphs.append(body)
    yield "attribute in one of several bodies", model([bodies])
    opset = [helper.make_opsetid("", 20)]
    function = helper.make_function(
        "f", "F", [], ["o"], [node("Constant", [], ["o"], value=tensor)], opset
    )
    yield "attribute in a function", model([constant_of(16)], functions=(function,))
    function = helper.make_function("f", "F", [], ["o"], [constant_of(16, "o")], opset)
    function.attribute_proto.add(name="a", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    yield "default of a function", model([constant_of(16)], functions=(function,))
    sparse = onnx.SparseTensorProto(dims=[16], values=tensor)
    sparse.indices.CopyFrom(helper.make_tensor("i", ints, [16], list(range(16))))
    yield "sparse values", model([node("Identity", ["w"], ["y"])], sparse=(sparse,))
    sparse = onnx.SparseTensorProto(dims=[16], indices=tensor)
    sparse.values.CopyFrom(helper.make_tensor("ws", TensorProto.FLOAT, [16], [1.0] * 16))
    yield "sparse indices", model([node("Identity", ["ws"], ["y"])], sparse=(sparse,))
    yield "sparse attribute", model([node("Constant", [], ["y"], sparse_value=sparse)])


def constant_of(elements: int, name: str = "y") -> onnx.NodeProto:
    value = helper.make_tensor(name, TensorProto.FLOAT, [elements], [0.0] * elements)
    return helper.make_node("Constant", [], [name], value=value)


def fault(changed: onnx.ModelProto, weights: tuple[str, int] | None = ("x.weights", 100)) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        check_model(parse_model(changed.SerializeToString(), Path("x.onnx")), weights)
    return str(caught.value)


PLACES = [place for place, _ in places(outside())]


@pytest.mark.parametrize("location", ["../../secret.bin", "/etc/passwd", MEMORY, "other.weights"])
@pytest.mark.parametrize("place", PLACES)
def test_data_elsewhere_is_refused(place: str, location: str) -> None:
    changed = dict(places(outside(location)))[place]
    assert f"'w' is in {location!r}" in fault(changed)


@pytest.mark.parametrize("place", PLACES)
def test_data_inline_is_fine(place: str) -> None:
    inline = helper.make_tensor("w", TensorProto.FLOAT, [16], [1.0] * 16)
    parsed = parse_model(dict(places(inline))[place].SerializeToString(), Path("x.onnx"))
    check_model(parsed, None)
    # Two elements short: any reader would have to make them up.
    inline.dims[0] = 18
    assert "no size that fits" in fault(dict(places(inline))[place])


BAD: list[tuple[TensorProto, str]] = [
    (outside("x.weights", 37), "is not within x.weights"),
    (outside("x.weights", 2**64), "does not say plainly"),
    (outside("x.weights", -4), "does not say plainly"),
    (outside("x.weights", "0x1"), "does not say plainly"),
    (outside("x.weights", ""), "does not say plainly"),
    (outside("x.weights", "\u0661"), "does not say plainly"),
    (outside("x.weights", 0, 60), "no size that fits"),
    (outside("x.weights", 0, 68), "no size that fits"),
    (outside("x.weights", 0, 64, dims=(-16,)), "shape"),
    (outside("x.weights", 0, 64, dims=(2**62, 4)), "no size that fits"),
    (outside("x.weights", data_type=TensorProto.STRING), "no size that fits"),
    (outside("x.weights", data_type=99), "no size that fits"),
    (outside("x.weights", raw_data=bytes(64)), "says twice"),
    (outside("./x.weights"), "not in the bundle's weights"),
    (outside("x.weights", name=""), "no name"),
]  # fmt: skip


@pytest.mark.parametrize(("tensor", "reason"), BAD)
def test_what_does_not_fit_the_weights(tensor: TensorProto, reason: str) -> None:
    identity = [helper.make_node("Identity", ["w"], ["y"])]
    assert reason in fault(model(identity, (tensor,)))


def repeated() -> onnx.ModelProto:
    tensor = outside("x.weights")
    tensor.external_data.add(key="location", value="x.weights")
    return model([], (tensor,))


def located_but_inline() -> onnx.ModelProto:
    tensor = outside("secret.bin", raw_data=bytes(64))
    tensor.ClearField("data_location")
    return model([], (tensor,))


def training() -> onnx.ModelProto:
    changed = model([])
    graph = changed.training_info.add().algorithm
    graph.initializer.append(outside())
    return changed


def foreign_node() -> onnx.ModelProto:
    return model([helper.make_node("EPContext", [], ["y"], domain="com.microsoft")])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (repeated, "says twice"),
        (located_but_inline, "says twice"),
        (training, "does not know"),
        (foreign_node, "'com.microsoft'"),
        (lambda: model([], (outside("x.weights"),) * 2), "twice"),
    ],
)
def test_what_else_a_graph_must_not_have(make: Callable[[], onnx.ModelProto], reason: str) -> None:
    assert reason in fault(make())


def with_graph(bundle: Path, content: bytes) -> Bundle:
    """Give a bundle another sampler graph, and list it, as anyone who makes a bundle can."""
    (bundle / "graphs" / "sampler.onnx").write_bytes(content)
    relist(bundle)
    return open_bundle(bundle)


def sampler_plan() -> BindingPlan:
    """A plan that launches the sampler."""
    from tgate_export.runtime.plan import BufferSpec, Launch

    names = ("sample", "noise_pred", "noise", "next_sample", "denoiser_input")
    shapes = dict.fromkeys(names, (1, 4, 8, 8)) | {"weights": (1, 9)}
    shapes |= dict.fromkeys(("history", "next_history"), (1, 3, 4, 8, 8))
    inputs = ("sample", "noise_pred", "history", "noise", "weights")
    launch = Launch(
        "sampler",
        {name: name for name in inputs},
        {name: name for name in shapes.keys() - set(inputs)},
    )
    buffers = {name: BufferSpec("float32", shape) for name, shape in shapes.items()}
    return BindingPlan(buffers, (launch,))


def reads_memory(bundle: Path, address: int) -> bytes:
    """A sampler that gives what lies at an address of the process as the next sample."""
    changed = onnx.load(bundle / "graphs" / "sampler.onnx")
    tensor = outside(MEMORY, address, 4 * 4 * 8 * 8, dims=(1, 4, 8, 8))
    changed.graph.initializer.append(tensor)
    for node in changed.graph.node:
        node.output[:] = ["" if name == "next_sample" else name for name in node.output]
    kept = [node for node in changed.graph.node if any(node.output)]
    del changed.graph.node[:]
    changed.graph.node.extend([helper.make_node("Identity", ["w"], ["next_sample"]), *kept])
    return changed.SerializeToString()


def test_no_backend_reads_the_memory_of_its_process(
    tiny_bundle_copy: Path, cpu_backend: str
) -> None:
    secret = np.frombuffer(b"what else this process holds " * 100, np.uint8).copy()
    content = reads_memory(tiny_bundle_copy, ctypes.c_void_p(secret.ctypes.data).value or 0)
    backend = select(cpu_backend, with_graph(tiny_bundle_copy, content))
    with pytest.raises(BundleError, match=r"'w' is in .*MEM_ADDR.*, not in the bundle's weights"):
        backend.allocate(sampler_plan())


@pytest.mark.parametrize("content", [b"", b"not a graph", b'<?xml version="1.0"?><net name="x"/>'])
def test_other_formats_are_refused(
    tiny_bundle_copy: Path, cpu_backend: str, content: bytes
) -> None:
    backend = select(cpu_backend, with_graph(tiny_bundle_copy, content))
    with pytest.raises(BundleError, match=r"sampler\.onnx"):
        backend.allocate(sampler_plan())


def test_another_format_of_openvino_does_not_run(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    sample = ov.opset13.parameter([-1, 4, 8, 8], np.float32, name="sample")
    ov.save_model(ov.Model([ov.opset13.relu(sample)], [sample], "ir"), tmp_path / "x.xml")
    content = (tmp_path / "x.xml").read_bytes()
    backend = select("openvino", with_graph(tiny_bundle_copy, content))
    with pytest.raises(BundleError, match="is not an ONNX model"):
        backend.allocate(sampler_plan())


def test_a_graph_that_changes_after_the_check(tiny_bundle_copy: Path, cpu_backend: str) -> None:
    backend = select(cpu_backend, open_bundle(tiny_bundle_copy))
    graph = tiny_bundle_copy / "graphs" / "sampler.onnx"
    graph.write_bytes(reads_memory(tiny_bundle_copy, 4096))
    with pytest.raises(BundleError, match="was changed"):
        backend.allocate(sampler_plan())


def test_graphs_of_a_build_pass(tiny_bundle: Path, reuse_bundle: Path) -> None:
    for folder in (tiny_bundle, reuse_bundle):
        bundle = open_bundle(folder)
        for graph, entry in bundle.manifest.graphs.items():
            found = onnx.ModelProto.FromString(read_graph(bundle, graph).SerializeToString())
            assert found == onnx.load(bundle.file(entry.file), load_external_data=False)


def test_openvino_reads_no_file(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    """Not even the weights beside the graph: it gets them from the map that was checked."""
    pytest.importorskip("openvino")
    from tgate_export import TGatePipeline

    call = {"num_inference_steps": 2, "gate_step": 1, "seed": 0, "output_type": "latent"}
    expected = TGatePipeline.from_bundle(tiny_bundle_copy, "onnxruntime:cpu")("a", **call).images
    pipeline = TGatePipeline.from_bundle(tiny_bundle_copy, "openvino")
    decoy = shutil.copytree(tiny_bundle_copy, tmp_path / "decoy")
    backend: Any = pipeline.backend
    for graph in backend._graphs._bundle.manifest.graphs:
        backend._graphs._map_weights(graph)
    for weights in (tiny_bundle_copy / "graphs").glob("*.weights"):
        weights.unlink()
        weights.write_bytes(bytes((decoy / "graphs" / weights.name).stat().st_size))
    np.testing.assert_allclose(pipeline("a", **call).images, expected, atol=1e-4)


def other_type(changed: onnx.ModelProto) -> None:
    cast = helper.make_node("Cast", ["sample"], ["next_sample"], to=TensorProto.DOUBLE)
    replace_next_sample(changed, cast)
    changed.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def other_rank(changed: onnx.ModelProto) -> None:
    changed.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)


def no_shape(changed: onnx.ModelProto) -> None:
    changed.graph.output[0].type.tensor_type.ClearField("shape")


def other_side(changed: onnx.ModelProto) -> None:
    changed.graph.input[2].type.tensor_type.shape.dim[1].dim_value = 300


def sequence(changed: onnx.ModelProto) -> None:
    replace_next_sample(changed, helper.make_node("SequenceConstruct", ["sample"], ["next_sample"]))
    value = helper.make_tensor_sequence_value_info("next_sample", TensorProto.FLOAT, None)
    changed.graph.output[0].CopyFrom(value)


def one_less(changed: onnx.ModelProto) -> None:
    del changed.graph.output[0]


def replace_next_sample(changed: onnx.ModelProto, node: onnx.NodeProto) -> None:
    assert changed.graph.output[0].name == "next_sample"
    for other in changed.graph.node:
        other.output[:] = ["" if name == "next_sample" else name for name in other.output]
    changed.graph.node.append(node)


@pytest.mark.parametrize("edit", [other_type, other_rank, no_shape, other_side, sequence, one_less])
def test_tensors_are_those_of_the_manifest(
    tiny_bundle_copy: Path, cpu_backend: str, edit: Edit
) -> None:
    changed = onnx.load(tiny_bundle_copy / "graphs" / "sampler.onnx")
    edit(changed)
    backend = select(cpu_backend, with_graph(tiny_bundle_copy, changed.SerializeToString()))
    with pytest.raises(BundleError, match=r"the manifest says: build"):
        backend.allocate(sampler_plan())
