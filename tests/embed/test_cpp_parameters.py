"""What a manifest says of a run, C++ does: rules, parameters and inputs that it was never told.

A made-up parameter and a made-up picture go from a request to the graphs by the manifest alone.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.embed.test_cpp_requests import opened, tensor
from tests.embed.test_cpp_run import array, assert_same, python_run, texts
from tests.support.cpp_driver import Driver, assert_alike
from tests.support.hostile import relist
from tests.support.manifest import VALID
from tests.support.step_plans import tgate_plan
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.manifest_reader import parse_manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.methods import tgate_v2
from tgate_export.runtime.buffers import NEGATIVE, buffer_of
from tgate_export.runtime.plan import BatchPlan, BatchShape, Launch, plan_batch
from tgate_export.runtime.request import make_request
from tgate_export.steps.rule import Guard, phase_of

pytestmark = pytest.mark.usefixtures("plain_sessions")

quickly = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
INTERVALS = ("sp_interval", "fi_interval", "warm_up")
METHOD = json.loads(tgate_v2.METHOD.described().model_dump_json())


def with_method(method: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest whose runs use a method, with a parameter for each of those it reads."""
    raw = copy.deepcopy(VALID)
    for name in method["parameters"]:
        raw["parameters"].setdefault(name, {"type": "integer", "default": 1, "min": 1})
    raw["methods"] = {"made-up": method}
    raw["caches"] = {}
    return raw


@quickly
@given(
    st.tuples(
        st.integers(1, 30), st.integers(-1, 32), st.integers(0, 1), st.integers(-1, 6),
        st.integers(-1, 6), st.integers(-1, 12),
    )
)  # fmt: skip
def test_step_plans(driver: Driver, values: tuple[int, ...]) -> None:
    steps, gate, extra, *rest = values
    method = {"gate_step": gate, **dict(zip(INTERVALS, rest, strict=True))}
    given_ = {"num_inference_steps": steps, **method}
    raw = json.dumps(with_method(METHOD))
    call: dict[str, Any] = {
        "text": raw, "step_of_evaluation": [*range(-extra, steps)],
        "request": {"prompt": texts("x"), **given_},
    }  # fmt: skip
    try:
        make_request(parse_manifest(raw, Path("x")), "x", **given_)
    except InvalidRequestError as error:
        assert_alike(driver.refusal("phases", **call), error)
    else:
        planned = tgate_plan(steps, gate, extra, **dict(zip(INTERVALS, rest, strict=True)))
        assert driver("phases", **call) == {"phases": list(planned.phases)}


NAMES = ("a", "b")
COMPARISONS = st.fixed_dictionaries(
    {"op": st.sampled_from(["<", "<=", "==", "!=", ">=", ">"])},
    optional={
        "modulo": st.sampled_from(NAMES),
        "parameter": st.sampled_from(NAMES),
        "constant": st.integers(-4, 4) | st.sampled_from([-(2**31) + 1, 2**31 - 1]),
    },
)
GUARDS = st.fixed_dictionaries(
    {"phase": st.sampled_from("uvwxyz"), "all": st.lists(COMPARISONS, max_size=3)}
)


@quickly
@given(
    guards=st.lists(GUARDS, max_size=4),
    values=st.tuples(*[st.integers(1, 9) | st.sampled_from([2**62, 2**63 - 1])] * 2),
    numbers=st.lists(st.integers(-3, 12), min_size=1),
)
def test_any_rule(
    driver: Driver, guards: list[dict[str, Any]], values: tuple[int, int], numbers: list[int]
) -> None:
    guards = [*guards, {"phase": "full", "all": []}]
    raw = with_method({"parameters": list(NAMES), "rule": guards})
    parameters = dict(zip(NAMES, values, strict=True))
    found = driver(
        "phases", text=json.dumps(raw), step_of_evaluation=numbers,
        request={"prompt": texts("x"), "num_inference_steps": 12, "parameters": parameters},
    )  # fmt: skip
    rule = [Guard.model_validate_json(json.dumps(guard)) for guard in guards]
    assert found == {"phases": [phase_of(rule, step, parameters) for step in numbers]}


def test_defaults_give_way(driver: Driver) -> None:
    raw = json.dumps(with_method(METHOD | {"parameters": ["gate_step", *INTERVALS]}))
    manifest = parse_manifest(raw, Path("x"))
    for options in (
        {}, {"num_inference_steps": 7}, {"num_inference_steps": 8}, {"num_inference_steps": 1},
        {"warm_up": 30}, {"gate_step": 2}, {"gate_step": 9, "warm_up": 9},
        {"num_inference_steps": 100, "warm_up": 5},
    ):  # fmt: skip
        expected = make_request(manifest, "x", **options)
        found = driver("values", text=raw, request={"prompt": texts("x"), **options})
        values = {name: expected.value(name) for name in manifest.parameters}
        assert found == {"parameters": values}, options


def test_parameters_by_name_are_the_fields_of_their_names(
    driver: Driver, tiny_bundle: Path
) -> None:
    options: dict[str, Any] = {
        "num_inference_steps": 3, "gate_step": 2, "guidance_scale": [3.0, 9.0],
        "guidance_rescale": 0.25, "scheduler": "euler",
    }  # fmt: skip
    request = {"prompt": texts("a", "b"), "seed": 3}
    by_field, by_name = (
        driver("run", bundle=str(tiny_bundle), request=request | given_)
        for given_ in (options, {"parameters": options})
    )
    assert by_name["images"] == by_field["images"]
    assert by_name["parameters"] == by_field["parameters"]
    assert by_name["parameters"] == options | {
        "guidance_scale": 3.0, "sp_interval": 1, "fi_interval": 1, "warm_up": 0, "clip_skip": 0,
        "cache_blend": 0.5, "guidance_carry": 0.0, "prompt_syntax": "plain",
    }  # fmt: skip
    for name, value in options.items():
        found = driver.refusal(
            "run", bundle=str(tiny_bundle),
            request={**request, name: value, "parameters": {name: value}},
        )  # fmt: skip
        assert (found.kind, found.field) == ("request", name)


@pytest.mark.parametrize("value", [1, 0, -1, 1.5, "x", [16, 16], [[16, 16]], [1, 2, 3], 2**62])
def test_values_of_any_type(driver: Driver, tiny_bundle: Path, value: Any) -> None:
    """By the table, and of parameters that the bundle lacks, as in Python."""
    text = (tiny_bundle / "manifest.json").read_text()
    manifest = parse_manifest(text, Path("x"))
    for name in (*manifest.parameters, "target_size", "fps", "tint"):
        call = {"text": text, "request": {"prompt": texts("x"), "parameters": {name: value}}}
        try:
            request = make_request(manifest, "x", **{name: value})
        except InvalidRequestError as error:
            assert_alike(driver.refusal("values", **call), error)
        else:
            found = driver("values", **call)["parameters"]
            assert found == {known: request.value(known) for known in manifest.parameters}


def negative_of(buffer: str) -> str:
    """Return where C++ has the negative prompt's of an output of the encoder."""
    folder, slash, name = buffer.rpartition("/")
    return folder + slash + NEGATIVE + name


def launched(manifest: Manifest, plan: BatchPlan) -> list[Launch]:
    """What C++ launches for a run of every phase, which never shares a batch."""
    encoder = manifest.graph(manifest.prompt_encoder)
    negative = Launch(
        manifest.prompt_encoder,
        {tensor.name: buffer_of(tensor, negative=True) for tensor in encoder.inputs},
        {name: negative_of(buffer) for name, buffer in plan.encode.outputs.items()},
    )
    steps = [
        launch
        for step, denoiser in enumerate(plan.denoise.values())
        for launch in (denoiser, plan.sample[step % 2])
    ]
    # It decodes where the last step left the sample.
    decode = replace(plan.decode, inputs={"latents": f"sample.{len(plan.denoise) % 2}"})
    return [plan.encode, negative, *steps, decode]


@pytest.mark.parametrize(
    ("bundle", "size"),
    [
        ("tiny_bundle", {}),
        ("reuse_bundle", {}),
        ("chunks_bundle", {}),
        ("tiny_dynamic_bundle", {"height": 48, "width": 16}),
    ],
)
def test_buffers_and_launches(
    driver: Driver, request: pytest.FixtureRequest, bundle: str, size: dict[str, Any]
) -> None:
    text = (request.getfixturevalue(bundle) / "manifest.json").read_text()
    manifest = parse_manifest(text, Path("x"))
    found = driver("plan", text=text, request={"prompt": texts("a", "b"), **size})
    asked = make_request(manifest, ["a", "b"], **size)
    plan = plan_batch(manifest, BatchShape(2, asked.height, asked.width, manifest.phases))
    launches = launched(manifest, plan)
    encoder, negative = manifest.graph(manifest.prompt_encoder), launches[1]
    buffers = {
        **plan.buffers,
        **{negative.inputs[each.name]: plan.buffers[buffer_of(each)] for each in encoder.inputs},
        **{negative_of(buffer): plan.buffers[buffer] for buffer in plan.encode.outputs.values()},
    }
    assert found["buffers"] == {
        name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in buffers.items()
    }
    assert found["launches"] == [
        {"graph": launch.graph, "inputs": launch.inputs, "outputs": launch.outputs}
        for launch in launches
    ]


def add_inputs(graph: onnx.ModelProto) -> None:
    """Add to the noise a number each, and the first row of a picture in [-1, 1]: no names fit."""
    inner = graph.graph
    (noise,) = [output for output in inner.output if output.name == "noise_pred"]
    for node in inner.node:
        for index, name in enumerate(node.output):
            if name == "noise_pred":
                node.output[index] = "noise_before"
    inner.input.append(helper.make_tensor_value_info("push", TensorProto.FLOAT, ["batch"]))
    inner.input.append(
        helper.make_tensor_value_info("seen", TensorProto.FLOAT, ["batch", 16, 16, 3])
    )
    sides = [dim.dim_value for dim in noise.type.tensor_type.shape.dim][1:]
    assert sides == [4, 8, 8]
    constants = {
        "made_up_ones": np.array([-1, 1, 1, 1]), "made_up_start": np.array([0]),
        "made_up_end": np.array([256]), "made_up_axis": np.array([1]),
        "made_up_flat": np.array([0, -1]), "made_up_sides": np.array([-1, *sides]),
    }  # fmt: skip
    inner.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    inner.node.extend(
        [
            helper.make_node("Reshape", ["push", "made_up_ones"], ["made_up_push"]),
            helper.make_node("Reshape", ["seen", "made_up_flat"], ["made_up_row"]),
            helper.make_node(
                "Slice", ["made_up_row", "made_up_start", "made_up_end", "made_up_axis"],
                ["made_up_part"],
            ),
            helper.make_node("Reshape", ["made_up_part", "made_up_sides"], ["made_up_picture"]),
            helper.make_node("Add", ["noise_before", "made_up_push"], ["made_up_sum"]),
            helper.make_node("Add", ["made_up_sum", "made_up_picture"], ["noise_pred"]),
        ]
    )  # fmt: skip


@pytest.fixture
def made_up_bundle(tiny_bundle_copy: Path) -> Path:
    def describe(manifest: dict[str, Any]) -> None:
        manifest["parameters"] |= {
            "tint": {"type": "number", "default": 0.25, "min": -2, "max": 2, "per": "prompt"},
            "control": {"type": "image", "per": "prompt"},
        }
        for name in ("full", "gated"):
            manifest["graphs"][name]["inputs"] += [
                {"name": "push", "dtype": "float32", "shape": ["batch"],
                 "from": {"parameter": "tint"}},
                {"name": "seen", "dtype": "float32", "shape": ["batch", 16, 16, 3],
                 "from": {"image": "control", "range": [-1, 1], "layout": "BHWC"}},
            ]  # fmt: skip

    for name in ("full", "gated"):
        file = tiny_bundle_copy / "graphs" / f"{name}.onnx"
        graph = onnx.load(file, load_external_data=False)
        add_inputs(graph)
        onnx.save(graph, file)
    relist(tiny_bundle_copy, describe)
    return tiny_bundle_copy


PICTURES = np.random.default_rng(8).random((2, 16, 16, 3), dtype=np.float32)


def test_a_made_up_parameter_and_a_made_up_picture(driver: Driver, made_up_bundle: Path) -> None:
    pipeline = opened(made_up_bundle)
    options: dict[str, Any] = {"num_inference_steps": 3, "gate_step": 2, "seed": 3}
    latents = []
    for tint, pictures in (
        (None, PICTURES), ([-1.5, 0.5], PICTURES), ([-1.5, 0.5], PICTURES[:1]), (1, PICTURES[::-1])
    ):  # fmt: skip
        named = {"control": list(pictures)} | ({} if tint is None else {"tint": tint})
        expected = python_run(pipeline, ["a", "b"], **options, parameters=named)
        request = {
            "prompt": texts("a", "b"), **options, "images": {"control": tensor(pictures)},
            "parameters": {} if tint is None else {"tint": tint},
        }  # fmt: skip
        found = driver("run", bundle=str(made_up_bundle), request=request)
        assert_same(found, expected)
        latents.append(array(found["latents"][0]))
    for index, one in enumerate(latents):
        for other in latents[:index]:
            assert np.abs(one - other).max() > 1e-2


def test_copies_of_a_prompt_have_its_values(driver: Driver, made_up_bundle: Path) -> None:
    options: dict[str, Any] = {
        "num_inference_steps": 2, "gate_step": 1, "seed": 3, "num_images_per_prompt": 2
    }  # fmt: skip
    named = {"control": list(PICTURES), "tint": [-1.0, 1.0]}
    expected = python_run(opened(made_up_bundle), ["a", "b"], **options, parameters=named)
    request = {
        "prompt": texts("a", "b"), **options, "images": {"control": tensor(PICTURES)},
        "parameters": {"tint": [-1.0, 1.0]},
    }  # fmt: skip
    assert_same(driver("run", bundle=str(made_up_bundle), request=request), expected)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"images": {}}, "control"),
        ({"images": {"control": tensor(PICTURES), "other": tensor(PICTURES)}}, "other"),
        ({"images": {"control": tensor(PICTURES), "tint": tensor(PICTURES)}}, "tint"),
        ({"images": {"control": tensor(PICTURES), "image": tensor(PICTURES)}}, "image"),
        ({"images": {"control": tensor(PICTURES[:, :, :8])}}, "width"),
        ({"images": {"control": tensor(PICTURES)}, "height": 8}, "control"),
        ({"images": {"control": tensor(PICTURES[0])}}, "control"),
        ({"images": {"control": tensor(np.concatenate([PICTURES, PICTURES]))}}, "control"),
        ({"images": {"control": tensor(PICTURES + 1)}}, "control"),
        ({"images": {"control": {"shape": [1, 16, 16, 3], "data": [0.5]}}}, "control"),
        ({"images": {"control": {"shape": [1, 2**62, 16, 3], "data": []}}}, "control"),
        ({"parameters": {"control": 1}}, "control"),
        ({"parameters": {"tint": 3}}, "tint"),
        ({"parameters": {"tint": "red"}}, "tint"),
        ({"parameters": {"tint": [1, 1, 1]}}, "tint"),
        ({"parameters": {"hue": 1}}, "hue"),
    ],
)
def test_what_does_not_fit(
    driver: Driver, made_up_bundle: Path, changes: dict[str, Any], field: str
) -> None:
    request = {"prompt": texts("a", "b"), "images": {"control": tensor(PICTURES)}} | changes
    found = driver.refusal("run", bundle=str(made_up_bundle), request=request)
    assert (found.kind, found.field) == ("request", field)


def test_a_parameter_without_a_default_is_asked_for(driver: Driver, made_up_bundle: Path) -> None:
    relist(made_up_bundle, lambda manifest: manifest["parameters"]["tint"].pop("default"))
    request: dict[str, Any] = {"prompt": texts("a"), "images": {"control": tensor(PICTURES[:1])}}
    found = driver.refusal("run", bundle=str(made_up_bundle), request=request)
    assert (found.kind, found.field) == ("request", "tint")
    request["parameters"] = {"tint": 0.5}
    request["num_inference_steps"] = 1
    assert driver("run", bundle=str(made_up_bundle), request=request)["images"]


def test_what_this_runtime_cannot_do_is_refused(driver: Driver, tiny_bundle_copy: Path) -> None:
    """Videos, and conditions that another graph makes than the one that reads the text."""
    raw = json.loads((tiny_bundle_copy / "manifest.json").read_text())
    decoder = raw["graphs"]["vae_decoder"]
    name, shape = decoder["outputs"][0]["name"], decoder["outputs"][0]["shape"]
    origin = {"graph": "vae_decoder", "output": name}
    raw["graphs"]["full"]["inputs"] += [
        {"name": "made_up", "dtype": "float32", "shape": shape, "from": origin}
    ]
    found = driver.refusal("plan", text=json.dumps(raw), request={"prompt": texts("x")})
    assert found.kind == "bundle"
    assert "'vae_decoder'" in found.text
    relist(tiny_bundle_copy, lambda manifest: manifest["latents"].update(frames=2))
    found = driver.refusal("run", bundle=str(tiny_bundle_copy), request={"prompt": texts("x")})
    assert found.kind == "request"
    assert "this runtime makes no videos" in found.text
