"""What runs graphs. `select` picks one; each backend is one file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from functools import partial

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.plans import Library, plan_sets
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.backends.base import (
    Backend,
    BackendError,
    BackendOptions,
    RunPrecision,
)
from tgate_export.runtime.backends.cuda import has_driver

ONNXRUNTIME = (
    "onnxruntime",
    "onnxruntime:cpu",
    "onnxruntime:cuda",
    "onnxruntime:tensorrt",
    "onnxruntime:tensorrt-rtx",
)
OPENVINO: dict[str, RunPrecision] = {"openvino": "fp32", "openvino:bf16": "bf16"}
PLANS: tuple[Library, ...] = ("tensorrt", "tensorrt-rtx")
GPU_PROVIDERS = ONNXRUNTIME[2:]
BACKENDS = ("auto", *ONNXRUNTIME, *OPENVINO, *PLANS)


def select(name: str, bundle: Bundle, options: BackendOptions | None = None) -> Backend:
    """Return the backend of that name, ready to load the bundle's graphs.

    `auto` is the fastest that works here: the bundle's plans, ONNX Runtime on CUDA, OpenVINO,
    ONNX Runtime on the CPU; only OpenVINO when a precision is asked for. ONNX Runtime's TensorRT
    execution providers compile for minutes on their first run, so they are used only when named.

    Raises:
        InvalidRequestError: an unknown name, or an option that is not for that backend.
        BackendError: the backend cannot be used on this machine.
    """
    check_backend(name)
    options = options or BackendOptions()
    if options.weight_streaming_budget is not None and name in (*ONNXRUNTIME, *OPENVINO):
        raise InvalidRequestError(f"--weight-streaming-budget is for plans, not for {name}")
    without = {*ONNXRUNTIME, *OPENVINO} - {"onnxruntime:cuda"}
    if not options.cuda_graphs and name in without:
        raise InvalidRequestError(
            f"--no-cuda-graphs is for plans and onnxruntime:cuda, not for {name}"
        )
    if options.precision not in (None, OPENVINO.get(name)) and name not in ("auto", "openvino"):
        raise InvalidRequestError(
            f"--precision {options.precision} is for auto and openvino, not for {name}"
        )
    if options.threads is not None and name in (*PLANS, *GPU_PROVIDERS):
        raise InvalidRequestError(f"threads are for CPUs, not for {name}")
    if name == "auto":
        return _fastest(bundle, options)
    for library in PLANS:
        if name == library:
            return _plans(bundle, library, options)
    if name in OPENVINO:
        return _openvino(bundle, options.precision or OPENVINO[name], options)
    return _onnxruntime(bundle, name.partition(":")[2] or None, options)


def check_backend(name: str) -> None:
    """Refuse a name that is no backend.

    Raises:
        InvalidRequestError: names those that may have been meant, and all.
    """
    if name in BACKENDS:
        return
    near = [known for known in BACKENDS if name and name.lower() in known.partition(":")[::2]]
    if name.lower() == "cpu":
        near.append("openvino")
    near = near or difflib.get_close_matches(name.lower(), BACKENDS, n=2)
    meant = f"did you mean {' or '.join(near)}? There are" if near else "choose one of"
    raise InvalidRequestError(f"unknown backend {name!r}: {meant} {', '.join(BACKENDS)}")


def _fastest(bundle: Bundle, options: BackendOptions) -> Backend:
    """Try every backend that the bundle can use, fastest first; the last one's error is raised."""
    passed = []
    candidates = list(_candidates(bundle, options))
    for name, make in candidates:
        try:
            backend = make()
        except BackendError as error:
            if name == candidates[-1][0]:
                raise
            passed.append(f"{name}: {error.reason}")
        else:
            break
    backend.reason = "the fastest that works here"
    if passed:
        backend.reason += f" ({'; '.join(passed)})"
    return backend


def _candidates(
    bundle: Bundle, options: BackendOptions
) -> Iterator[tuple[str, Callable[[], Backend]]]:
    if options.precision:
        yield "openvino", partial(_openvino, bundle, options.precision, options)
        return
    built = {plans.key.library for plans in plan_sets(bundle.path)}
    for library in PLANS:
        if library in built:
            yield library, partial(_plans, bundle, library, options)
    if built or has_driver():  # elsewhere nobody waits for a GPU, and needs not hear of it
        yield "onnxruntime:cuda", partial(_onnxruntime, bundle, "cuda", options)
    yield "openvino", partial(_openvino, bundle, "fp32", options)
    yield "onnxruntime:cpu", partial(_onnxruntime, bundle, "cpu", options)


def _plans(bundle: Bundle, library: Library, options: BackendOptions) -> Backend:
    from tgate_export.runtime.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(bundle, library, options)


def _onnxruntime(bundle: Bundle, device: str | None, options: BackendOptions) -> Backend:
    from tgate_export.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(
        bundle, device, cuda_graphs=options.cuda_graphs, threads=options.threads
    )


def _openvino(bundle: Bundle, precision: RunPrecision, options: BackendOptions) -> Backend:
    from tgate_export.runtime.backends.openvino import OpenVinoBackend

    return OpenVinoBackend(bundle, precision, threads=options.threads)
