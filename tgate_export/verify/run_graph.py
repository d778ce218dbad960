"""Run one graph of a bundle once: as it is written, or as a backend does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tgate_export.bundle.dims import concrete_shape, graph_dims
from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.backends.base import Backend
from tgate_export.runtime.plan import BindingPlan, BufferSpec, Launch

Arrays = dict[str, np.ndarray]


def run_file(path: Path, inputs: Arrays) -> Arrays:
    """Run an ONNX file once on the CPU as it is written, with as little memory as that takes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    # Folding the casts of fp16 weights would hold all of them in fp32, too.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # By default every cast of a weight runs first, and all of them are in fp32 at once; by
    # priority, each runs when its layer does: half the memory for SDXL.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    # A packed copy of the weights pays off over many runs only.
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {entry.name for entry in session.get_inputs()}
    outputs: list[Any] = session.run(
        names, {name: value for name, value in inputs.items() if name in wanted}
    )
    return dict(zip(names, outputs, strict=True))


def run_on(backend: Backend, manifest: Manifest, graph: str, inputs: Arrays) -> Arrays:
    """Run a bundle's graph on a backend.

    Args:
        backend: what loads and runs it.
        manifest: the bundle's: which tensors there are.
        graph: its name.
        inputs: by name, of the graph's types, for images of the bundle's usual size.

    Raises:
        BackendError: the graph cannot be loaded.
    """
    entry = manifest.graph(graph)
    size = manifest.size
    batch = len(inputs[entry.inputs[0].name])
    dims = graph_dims(manifest, graph, batch=batch, height=size.height.opt, width=size.width.opt)
    buffers = {
        tensor.name: BufferSpec(tensor.dtype, concrete_shape(graph, tensor, dims))
        for tensor in (*entry.inputs, *entry.outputs)
    }
    tensors = {tensor.name: tensor.name for tensor in entry.inputs}
    launch = Launch(graph, tensors, {tensor.name: tensor.name for tensor in entry.outputs})
    memory = backend.allocate(BindingPlan(buffers, (launch,)))
    execute = backend.prepare(launch, memory)
    for name in launch.inputs:
        memory.write(name, inputs[name])
    execute()
    return {name: memory.read(name) for name in launch.outputs}
