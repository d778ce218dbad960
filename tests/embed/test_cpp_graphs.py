"""A graph whose data lies elsewhere reaches no engine of the C++ library either.

The C++ code walks over the wire format by itself, so what is walked is compared with the message
types of the onnx package, and what is said with the Python runtime.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.embed.test_cpp_run import texts
from tests.runtime.test_onnx_check import (
    BAD,
    MEMORY,
    PLACES,
    constant_of,
    foreign_node,
    located_but_inline,
    model,
    outside,
    places,
    reads_memory,
    repeated,
    training,
)
from tests.support.cpp_driver import CppBuild, Driver, assert_alike
from tests.support.hostile import relist
from tgate_export.bundle.integrity import open_bundle
from tgate_export.common.errors import BundleError
from tgate_export.runtime.backends.onnx_check import read_graph

SECRET = "../../secret.bin"


class Graphs:
    """One bundle, whose denoiser's graph is replaced again and again."""

    def __init__(self, driver: Driver, bundle: Path) -> None:
        self._driver = driver
        self.bundle = bundle
        self.file = bundle / "graphs" / "full.onnx"
        manifest = json.loads((bundle / "manifest.json").read_text())
        self.weights: dict[str, Any] = manifest["files"]["graphs/denoiser.weights"]

    def write(self, content: bytes) -> None:
        self.file.write_bytes(content)
        path = self.bundle / "manifest.json"
        manifest = json.loads(path.read_text())
        record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        manifest["files"]["graphs/full.onnx"] = record
        path.write_text(json.dumps(manifest))

    def refusal(self, content: bytes) -> str:
        self.write(content)
        return self._driver.error("graph", bundle=str(self.bundle), graph="full")

    def refused_alike(self, content: bytes) -> str:
        """Return what C++ says of a graph that Python refuses, too."""
        self.write(content)
        found = self._driver.refusal("graph", bundle=str(self.bundle), graph="full")
        with pytest.raises(BundleError) as caught:
            read_graph(open_bundle(self.bundle, check_hashes=False), "full")
        assert_alike(found, caught.value)
        assert found.text.startswith(str(self.file))
        return found.text

    def passes(self, content: bytes) -> None:
        self.write(content)
        reply = self._driver("graph", bundle=str(self.bundle), graph="full")
        assert reply == {"bytes": len(content)}


@pytest.fixture
def graphs(driver: Driver, tiny_bundle_copy: Path) -> Graphs:
    return Graphs(driver, tiny_bundle_copy)


def test_graphs_of_a_build_pass(driver: Driver, tiny_bundle: Path, reuse_bundle: Path) -> None:
    for bundle in (tiny_bundle, reuse_bundle):
        for name, graph in open_bundle(bundle).manifest.graphs.items():
            reply = driver("graph", bundle=str(bundle), graph=name)
            assert reply == {"bytes": (bundle / graph.file).stat().st_size}


@pytest.mark.parametrize("place", PLACES)
def test_data_elsewhere(graphs: Graphs, place: str) -> None:
    for location in (SECRET, "/etc/passwd", MEMORY, "other.weights"):
        changed = dict(places(outside(location)))[place]
        found = graphs.refused_alike(changed.SerializeToString())
        assert f"'w' is in {location!r}" in found
    inline = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [16], [1.0] * 16)
    graphs.passes(dict(places(inline))[place].SerializeToString())


def ways(message: Any, seen: tuple[Any, ...] = ()) -> Iterator[list[Any]]:
    """Every way of fields from a message type to a tensor, through no type twice but a graph."""
    for field in message.fields:
        inner = field.message_type
        if inner is None or seen.count(inner) > (inner.name == "GraphProto"):
            continue
        if inner.name == "TensorProto":
            yield [field]
        for rest in ways(inner, (*seen, inner)):
            yield [field, *rest]


WAYS = list(ways(onnx.ModelProto.DESCRIPTOR))


def test_every_way_to_a_tensor_is_walked(graphs: Graphs) -> None:
    """Whatever fields the format has: onnx.proto itself says which."""
    tried = set()
    for way in WAYS:
        changed = onnx.ModelProto(ir_version=10)
        changed.graph.name = "g"
        message: Any = changed
        for field in way:
            several = not isinstance(getattr(message, field.name), onnx.TensorProto) and hasattr(
                getattr(message, field.name), "add"
            )
            inner = getattr(message, field.name)
            message = inner.add() if several else inner
        message.CopyFrom(outside(SECRET))
        found = graphs.refusal(changed.SerializeToString())
        assert "'w' is in" in found or "does not know" in found, [field.name for field in way]
        tried.add(".".join(field.name for field in way))
    assert len(tried) > 60
    assert {
        "graph.node.attribute.g.sparse_initializer.indices",
        "functions.node.attribute.t",
    } < tried


@pytest.mark.parametrize("case", range(len(BAD)))
def test_what_does_not_fit_the_weights(graphs: Graphs, case: int) -> None:
    tensor = onnx.TensorProto.FromString(BAD[case][0].SerializeToString())
    for entry in tensor.external_data:
        if entry.key == "location" and "x.weights" in entry.value:
            entry.value = entry.value.replace("x.weights", "denoiser.weights")
        if (entry.key, entry.value) == ("offset", "37"):  # of 100 bytes
            entry.value = str(graphs.weights["bytes"] - 63)
    identity = [onnx.helper.make_node("Identity", ["w"], ["y"])]
    content = model(identity, (tensor,)).SerializeToString()
    if BAD[case][1] == "shape":  # said in other words
        assert "no size that fits" in graphs.refusal(content)
    else:
        graphs.refused_alike(content)


def test_the_last_bytes_of_the_weights(graphs: Graphs) -> None:
    identity = [onnx.helper.make_node("Identity", ["w"], ["y"])]
    size = graphs.weights["bytes"]
    graphs.passes(model(identity, (outside("denoiser.weights", size - 64),)).SerializeToString())


@pytest.mark.parametrize(
    "make",
    [repeated, located_but_inline, training, foreign_node, lambda: model([], (outside("x"),) * 2)],
)
def test_what_else_a_graph_must_not_have(graphs: Graphs, make: Any) -> None:
    assert graphs.refusal(make().SerializeToString()).endswith(": build the bundle again")


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def test_tensors_that_protobuf_would_merge(graphs: Graphs) -> None:
    """Each half is well by itself; merged, their shape and their data do not fit."""
    first = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [16], bytes(64), raw=True)
    second = onnx.TensorProto(dims=[1 << 20])
    twice = b"".join(field(5, half.SerializeToString()) for half in (first, second))
    attribute = field(1, b"value") + twice
    node = field(4, b"Constant") + field(5, attribute)
    content = field(7, field(1, node))
    merged = onnx.ModelProto.FromString(content).graph.node[0].attribute[0].t
    assert list(merged.dims) == [16, 1 << 20]
    assert "it is not an ONNX model" in graphs.refusal(content)
    # And of a graph, of which the second would bring the initializers.
    whole = model([constant_of(16)], ()).graph.SerializeToString()
    other = onnx.GraphProto(initializer=[outside(SECRET)]).SerializeToString()
    graphs.passes(field(7, whole))
    assert "full.onnx: " in graphs.refusal(field(7, whole) + field(7, other))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"not a graph", b'<?xml version="1.0"?><net name="x"/>', field(7, b"\x0a"),
        varint(7 << 3 | 0) + b"\x01", varint(7 << 3 | 3), field(7, b"")[:-1] + b"\xff",
        b"\xff" * 11, field(7, field(1, b"")) + b"\x00",
    ],
)  # fmt: skip
def test_what_is_no_model(graphs: Graphs, content: bytes) -> None:
    assert graphs.refusal(content).endswith("it is not an ONNX model: build the bundle again")


def test_every_cut_and_many_changed_bytes(graphs: Graphs) -> None:
    """Nothing is read past an end: sanitizers and the fuzz target look closer."""
    good = model([constant_of(16)]).SerializeToString()
    graphs.passes(good)
    for end in range(len(good)):
        graphs.write(good[:end])
        graphs._driver("graph", bundle=str(graphs.bundle), graph="full")
    for at, value in itertools.product(range(0, len(good), 3), (0, 0x7F, 0x80, 0xFF)):
        graphs.write(good[:at] + bytes([value]) + good[at + 1 :])
        graphs._driver("graph", bundle=str(graphs.bundle), graph="full")


def test_graphs_in_graphs_to_any_depth(graphs: Graphs) -> None:
    inner = b""
    for _ in range(100_000):
        inner = field(1, field(5, field(6, inner)))
        if len(inner) > 1 << 20:
            break
    assert "it is not an ONNX model" in graphs.refusal(field(7, inner))


def sampler_call(bundle: Path, backend: str, **options: Any) -> dict[str, Any]:
    request = {"prompt": texts("x"), "num_inference_steps": 1, "gate_step": 1, "seed": 0}
    return {"bundle": str(bundle), "backend": backend, "request": request, **options}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_no_backend_reads_the_memory_of_its_process(
    driver: Driver, tiny_bundle_copy: Path, backend: str
) -> None:
    secret = np.zeros(1024, np.uint8)
    address = ctypes.c_void_p(secret.ctypes.data).value or 0
    content = reads_memory(tiny_bundle_copy, address)
    (tiny_bundle_copy / "graphs" / "sampler.onnx").write_bytes(content)
    relist(tiny_bundle_copy)
    found = driver.error("run", **sampler_call(tiny_bundle_copy, backend))
    assert f"'w' is in {MEMORY!r}, not in the bundle's weights" in found


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["gated.onnx", "denoiser.weights"])
@pytest.mark.parametrize("same", [True, False])
def test_a_file_that_is_replaced_below_a_pipeline(
    driver: Driver, tiny_bundle_copy: Path, backend: str, name: str, same: bool
) -> None:
    """`gated` is loaded when it first runs, after another file took the place of one checked."""
    call = sampler_call(tiny_bundle_copy, backend)
    call["request"] |= {"num_inference_steps": 2, "gate_step": 2}
    assert driver("run", **call)["images"]
    file = tiny_bundle_copy / "graphs" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= not same
    file.with_suffix(".new").write_bytes(content)
    os.replace(file.with_suffix(".new"), file)
    call["request"]["gate_step"] = 1
    if same:  # a bundle that was copied over by itself
        assert driver("run", **call)["images"]
    else:
        found = driver.error("run", **call)
        assert found == f"{file} was changed while the bundle was in use: load the bundle again"


def test_a_relative_path_outlives_its_folder(
    cpp_build: CppBuild, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The driver is in another folder when a call loads the engines."""
    driver = Driver(cpp_build.driver, cwd=tiny_bundle.parent)
    try:
        call = sampler_call(Path(tiny_bundle.name), "onnxruntime", chdir=str(tmp_path))
        assert driver("run", **call)["images"]
    finally:
        driver.close()
