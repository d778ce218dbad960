"""One ONNX graph to one serialized plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.plans import ShapeRange
from tgate_export.common.errors import TGateError, first_line
from tgate_export.common.memory import release_memory
from tgate_export.common.progress import Progress
from tgate_export.compile.checks import check_precision, check_tensors
from tgate_export.compile.compiler import Compiler
from tgate_export.compile.monitor import build_monitor, deferred_signals
from tgate_export.compile.request import PlanRequest
from tgate_export.runtime.backends.onnx_check import read_graph


def compile_graph(
    compiler: Compiler,
    bundle: Bundle,
    graph: str,
    shapes: dict[str, ShapeRange],
    request: PlanRequest,
    out: Path,
    progress: Progress,
) -> None:
    """Compile a graph of a bundle and write the plan to `out`.

    Args:
        compiler: the TensorRT to use.
        bundle: where the graph is.
        graph: its name.
        shapes: of every input.
        request: target GPUs and settings.
        out: file to write.
        progress: told how far it is.

    Raises:
        BundleError: the graph was changed, or has weights that are not the bundle's.
        VerificationError: the parsed network is not the graph that the manifest describes.
        TGateError: TensorRT cannot compile it; says why in its words.
    """
    from polygraphy.backend.trt import engine_bytes_from_network, network_from_onnx_path
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    manifest = bundle.manifest
    read_graph(bundle, graph)  # TensorRT opens the file and its weights by itself
    compiler.errors.clear()
    release_memory()
    silent = G_LOGGER.CRITICAL + 1
    with G_LOGGER.verbosity(silent), deferred_signals() as stopped:
        try:
            builder, network, parser = network_from_onnx_path(
                str(bundle.file(manifest.graph(graph).file)),
                strongly_typed=compiler.strongly_typed(),
            )
            check_tensors(graph, manifest.graph(graph), network)
            check_precision(graph, manifest.graph(graph), network)
            # Without a fused kernel for its type and shape, an attention is computed in parts.
            for attention in compiler.attention_layers(network):
                attention.decomposable = True
            profile = _profile(network, shapes)
            monitor = build_monitor(compiler.trt, progress, stopped)
            config = compiler.config(request, profile, monitor)
            timing_cache = request.timing_cache and str(request.timing_cache)
            plan = engine_bytes_from_network(
                (builder, network, parser), config, save_timing_cache=timing_cache
            )
        except PolygraphyException as error:
            reason = compiler.errors[-1] if compiler.errors else first_line(error)
            raise TGateError(
                f"{compiler.library} {compiler.version} cannot compile graph {graph!r}: {reason}"
            ) from None
        with out.open("wb") as file:
            file.write(plan)
        # Each holds a copy of the weights.
        del plan, config, network, parser, builder
        release_memory()


def _profile(network: Any, shapes: dict[str, ShapeRange]) -> Any:
    """Make static inputs static in the network, and return the ranges of all of them."""
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = shapes[tensor.name]
        if shape.static:
            tensor.shape = shape.opt
        profile.add(tensor.name, min=shape.min, opt=shape.opt, max=shape.max)
    return profile
