"""TensorRT and TensorRT-RTX: everything that differs between the two, and between versions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from tgate_export.bundle.plans import Library, PlanSettings
from tgate_export.common.errors import InvalidRequestError, TGateError, first_line
from tgate_export.common.hints import Argument
from tgate_export.common.install import pip_install
from tgate_export.compile.request import PlanRequest
from tgate_export.runtime.backends.tensorrt_versions import MODULES, collecting_logger

# As in the extras of pyproject.toml.
MINIMUM_VERSIONS: dict[Library, tuple[int, int]] = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 7)}


@dataclass(frozen=True)
class Compiler:
    """An installed TensorRT.

    Attributes:
        library: which of the two.
        trt: its Python module.
        version: such as "1.7.1.116".
        errors: what its logger reported, newest last.
    """

    library: Library
    trt: Any
    version: str
    errors: list[str]

    def compute_capabilities(self) -> tuple[str, ...]:
        """Return the GPUs that can be named as targets; none for TensorRT."""
        if self.library == "tensorrt":
            return ()
        names = (name[2:] for name in dir(self.trt.ComputeCapability) if name.startswith("SM"))
        ordered = sorted((int(name[:-1]), int(name[-1])) for name in names)
        return tuple(f"{major}.{minor}" for major, minor in ordered)

    def strongly_typed(self) -> bool | None:
        """Return the flag of a network whose precision is that of its ONNX types.

        Newer versions know no other networks, and no flag.
        """
        flags = self.trt.NetworkDefinitionCreationFlag
        return True if hasattr(flags, "STRONGLY_TYPED") else None

    def attention_layers(self, network: Any) -> list[Any]:
        """Return a network's fused attentions; older versions parse them into their parts."""
        if not hasattr(self.trt, "IAttentionInputLayer"):
            return []
        found = []
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type == self.trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = self.trt.IAttentionInputLayer  # TensorRT's way to downcast
                found.append(layer.attention)
        return found

    def check_settings(self, settings: PlanSettings, *, gpu: bool) -> None:
        """Refuse what this TensorRT cannot do.

        Raises:
            InvalidRequestError: names the option and why it cannot be used.
        """
        rtx = self.library == "tensorrt-rtx"
        if rtx and settings.hardware_compatible:
            raise InvalidRequestError(
                "hardware compatibility is of TensorRT's plans alone",
                "name several GPUs with ",
                Argument("compute_capabilities"),
                " instead",
            )
        if rtx and settings.version_compatible:
            raise InvalidRequestError(
                "version compatibility is of TensorRT's plans alone: those of TensorRT-RTX run "
                "with the version that made them",
                "leave ",
                Argument("version_compatible"),
                " out",
            )
        if settings.weights_stripped and not gpu:
            raise InvalidRequestError(
                "stripping weights needs an NVIDIA GPU at build time",
                "build there, or without ",
                Argument("weights_stripped"),
            )

    def config(self, request: PlanRequest, profile: Any, monitor: Any) -> Callable[..., Any]:
        """Return what makes the builder's configuration; see Polygraphy's `CreateConfig`."""
        common = {
            "profiles": [profile],
            "progress_monitor": monitor,
            "load_timing_cache": request.timing_cache and str(request.timing_cache),
            **self._settings(request.settings),
        }
        if self.library == "tensorrt-rtx":
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

            named = [tuple(map(int, sm.split("."))) for sm in request.compute_capabilities]
            create = CreateConfigRTX(compute_capabilities=named, **common)
        else:
            from polygraphy.backend.trt import CreateConfig

            create = CreateConfig(**common)

        def configure(builder: Any, network: Any) -> Any:
            config = create(builder, network)
            # fp32 means fp32; TensorRT-RTX sets TF32 unasked.
            config.clear_flag(self.trt.BuilderFlag.TF32)
            # Small shapes of a dynamic plan then need less activation memory.
            resize = getattr(self.trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
            if resize is not None:
                config.set_preview_feature(resize, True)
            return config

        return configure

    def _settings(self, settings: PlanSettings) -> dict[str, Any]:
        trt = self.trt
        verbosity = trt.ProfilingVerbosity
        pools = {trt.MemoryPoolType.WORKSPACE: settings.workspace_bytes}
        return {
            "builder_optimization_level": settings.optimization_level,
            "memory_pool_limits": pools if settings.workspace_bytes else None,
            "refittable": settings.weights_stripped,
            "strip_plan": settings.weights_stripped,
            "weight_streaming": settings.weight_streaming,
            "version_compatible": settings.version_compatible,
            "hardware_compatibility_level": (
                trt.HardwareCompatibilityLevel.AMPERE_PLUS if settings.hardware_compatible else None
            ),
            "profiling_verbosity": (
                verbosity.DETAILED if settings.layer_info else verbosity.LAYER_NAMES_ONLY
            ),
        }


def load_compiler(library: Library) -> Compiler:
    """Import TensorRT or TensorRT-RTX and Polygraphy.

    Raises:
        TGateError: says what is missing and how to get it.
    """
    if find_spec(MODULES[library]) is None or find_spec("polygraphy") is None:
        raise _not_installed(library)
    if "polygraphy.backend.trt" in sys.modules and _polygraphy_library() != library:
        raise TGateError("one process compiles with TensorRT or TensorRT-RTX: build twice")
    try:
        trt = importlib.import_module(MODULES[library])
        config = importlib.import_module("polygraphy.config")
        config.USE_TENSORRT_RTX = library == "tensorrt-rtx"  # type: ignore[attr-defined]
        polygraphy_trt = importlib.import_module("polygraphy.backend.trt.util")
    except (ImportError, OSError) as error:  # OSError: a library beside the module
        raise TGateError(f"cannot import {library}: {first_line(error)}") from error
    version = str(trt.__version__)
    minimum = MINIMUM_VERSIONS[library]
    if tuple(int(part) for part in version.split(".")[:2]) < minimum:
        wanted = ".".join(map(str, minimum))
        raise TGateError(
            f"{library} {version} is too old, {wanted} is needed: {pip_install(library)}"
        )
    # Polygraphy and TensorRT know one logger a process; ours keeps what went wrong for messages.
    logger = collecting_logger(trt)
    polygraphy_trt.TRT_LOGGER = logger  # type: ignore[attr-defined]
    return Compiler(library, trt, version, logger.errors)


def _polygraphy_library() -> Library:
    from polygraphy import config

    return "tensorrt-rtx" if config.USE_TENSORRT_RTX else "tensorrt"


# What compiles without the GPU that is to run the plans.
_ELSEWHERE = (
    Argument("library", "tensorrt-rtx"),
    " with ",
    Argument("compute_capabilities", ("X.Y",)),
    " compiles for a GPU that is elsewhere",
)


def _not_installed(library: Library) -> TGateError:
    if library == "tensorrt-rtx":
        return TGateError(
            "TensorRT-RTX plans need the packages tensorrt-rtx and polygraphy",
            pip_install("tensorrt-rtx"),
        )
    return TGateError(
        "TensorRT plans need the packages tensorrt and polygraphy and an NVIDIA GPU",
        f"{pip_install('tensorrt')} on the machine that is to run the plans; ",
        *_ELSEWHERE,
    )


def resolve_targets(
    compiler: Compiler, asked: tuple[str, ...], local: str | None, reason: str
) -> tuple[str, ...]:
    """Return the compute capabilities to compile for: those asked for, or this machine's GPU's.

    Args:
        compiler: what compiles.
        asked: compute capabilities that were named.
        local: this machine's, if it has a GPU.
        reason: why it has none.

    Raises:
        InvalidRequestError: one that this TensorRT cannot target.
        TGateError: none was named and there is no GPU.
    """
    possible = compiler.compute_capabilities()
    if compiler.library == "tensorrt":
        if local is None:
            raise TGateError(
                f"TensorRT compiles on the GPU that is to run the plans: {reason}", *_ELSEWHERE
            )
        if any(sm != local for sm in asked):
            raise InvalidRequestError(
                f"TensorRT compiles for the GPU of this machine, SM {local}",
                "leave ",
                Argument("compute_capabilities"),
                " out, or use ",
                Argument("library", "tensorrt-rtx"),
            )
        return (local,)
    if not asked and local is None:
        raise TGateError(
            reason,
            "name the GPU to compile for with ",
            Argument("compute_capabilities"),
            f", one of {', '.join(possible)}",
        )
    targets = tuple(dict.fromkeys(asked or (str(local),)))
    for target in targets:
        if target not in possible:
            raise InvalidRequestError(
                f"TensorRT-RTX {compiler.version} cannot compile for SM {target}: "
                f"choose from {', '.join(possible)}"
            )
    return targets
