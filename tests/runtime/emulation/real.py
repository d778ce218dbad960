"""Plans of a bundle's graphs made by the real TensorRT-RTX or TensorRT, through Polygraphy."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.runtime.emulation.plans import shape_ranges, write_plan_set
from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.plans import Flavour


def installed_flavour() -> Flavour | None:
    """Return what is installed here; TensorRT-RTX if both are."""
    for module, flavour in (("tensorrt_rtx", "tensorrt-rtx"), ("tensorrt", "tensorrt")):
        if importlib.util.find_spec(module):
            return flavour  # type: ignore[return-value]
    return None


def write_real(
    bundle: Path,
    flavour: Flavour,
    compute_capability: str,
    graphs: Sequence[str] | None = None,
    *,
    name: str = "real",
) -> Path:
    """Compile graphs for a batch of one; TensorRT compiles for the GPU that is there."""
    import polygraphy.config

    polygraphy.config.USE_TENSORRT_RTX = flavour == "tensorrt-rtx"
    from polygraphy.backend.trt import Profile, engine_bytes_from_network, network_from_onnx_path

    manifest = read_manifest(bundle)
    shapes = shape_ranges(manifest, (1, 1, 1))
    contents: Mapping[str, bytes] = {}
    for graph in graphs or shapes:
        profile = Profile()
        for tensor, found in shapes[graph].items():
            profile.add(tensor, found.min, found.opt, found.max)
        parsed = network_from_onnx_path(
            str(bundle / manifest.graph(graph).file), strongly_typed=True
        )
        _decompose_attention(parsed[1])
        config = _config(flavour, compute_capability, profile)
        contents = {**contents, graph: bytes(engine_bytes_from_network(parsed, config=config))}
    version = importlib.import_module(flavour.replace("-", "_")).__version__
    return write_plan_set(bundle, name, flavour, version, [compute_capability], shapes, contents)


def _decompose_attention(network: Any) -> None:
    """Allow what has no fused kernel: the tiny pipeline's heads are too small for one."""
    trt = importlib.import_module(type(network).__module__.partition("_bindings")[0])
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # TensorRT's way to downcast
            layer.attention.decomposable = True


def _config(flavour: Flavour, compute_capability: str, profile: Any) -> Any:
    if flavour == "tensorrt":
        from polygraphy.backend.trt import CreateConfig

        return CreateConfig(profiles=[profile])
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    major, minor = compute_capability.split(".")
    return CreateConfigRTX(
        profiles=[profile], use_gpu=False, compute_capabilities=[(int(major), int(minor))]
    )
