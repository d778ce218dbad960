"""Which of a bundle's plan sets runs a request on this machine. Pure, no devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tgate_export.bundle.plans import Library, PlanKey, PlanSet
from tgate_export.common.hints import Argument, Build
from tgate_export.runtime.backends.base import BackendError
from tgate_export.runtime.plan import BindingPlan

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]  # graph -> input -> shape
_AMPERE = (8, 0)  # the oldest GPU of TensorRT's hardware-compatible plans


@dataclass(frozen=True)
class Machine:
    """What a plan has to fit: the GPU, such as "8.9", and the installed version."""

    library: Library
    version: str
    compute_capability: str


def input_shapes(plan: BindingPlan) -> Shapes:
    """Return the shape of every input of every graph that a run launches."""
    return {
        launch.graph: {
            tensor: plan.buffers[buffer].shape for tensor, buffer in launch.inputs.items()
        }
        for launch in plan.launches
    }


def batch_size(sets: Sequence[PlanSet], machine: Machine, images: int) -> int:
    """Return the largest batch of at most so many images that a set takes; all, if none does."""
    sizes = []
    for plans in sets:
        if not _misfits(plans, machine, {}):
            shapes = [shape for p in plans.plans.values() for shape in p.key.shapes.values()]
            smallest = max(shape.min[0] for shape in shapes)
            largest = min(shape.max[0] for shape in shapes)
            if smallest <= images:
                sizes.append(min(largest, images))
    return max(sizes, default=images)


def choose(sets: Sequence[PlanSet], machine: Machine, shapes: Shapes, build: Build) -> PlanSet:
    """Return the set that fits: one of a single shape before one of a range.

    Args:
        sets: of the machine's library.
        machine: see `Machine`.
        shapes: what is to run; empty to look at the machine alone.
        build: what makes plans, for the hint.

    Raises:
        BackendError: lists for each set what does not fit.
    """
    misfits = {plans.name: _misfits(plans, machine, shapes) for plans in sets}
    fitting = [plans for plans in sets if not misfits[plans.name]]
    if not fitting:
        listed = "; ".join(f"{name}: {', '.join(found)}" for name, found in misfits.items())
        raise BackendError(
            f"no {machine.library} plans for {machine.library} {machine.version} on compute "
            f"capability {machine.compute_capability} fit ({listed})",
            "make some with `",
            build,
            "`, or use ",
            Argument("backend", "onnxruntime"),
        )
    return min(fitting, key=lambda plans: (not _static(plans), plans.name))


def _static(plans: PlanSet) -> bool:
    keys = [plan.key for plan in plans.plans.values()]
    return all(shape.static for key in keys for shape in key.shapes.values())


def _misfits(plans: PlanSet, machine: Machine, shapes: Shapes) -> list[str]:
    """Say what of a set does not fit; the first shape alone stands for all of them."""
    found = []
    key = plans.key
    if not _runs_on_version(key, machine.version):
        found.append(f"version {key.version}")
    if not _runs_on_gpu(key, machine.compute_capability):
        found.append(f"compute capability {' and '.join(key.compute_capabilities)}")
    for graph, inputs in shapes.items():
        if graph not in plans.plans:
            return [*found, f"no plan of {graph!r}"]
        ranges = plans.plans[graph].key.shapes
        for tensor, shape in inputs.items():
            if tensor not in ranges or shape not in ranges[tensor]:
                wanted = "x".join(map(str, shape))
                return [*found, f"{graph}'s {tensor} {ranges.get(tensor)}, not {wanted}"]
    return found


def _runs_on_version(key: PlanKey, version: str) -> bool:
    if not key.settings.version_compatible:
        return key.version == version
    built, here = ([int(part) for part in text.split(".")[:3]] for text in (key.version, version))
    return built[0] == here[0] and built <= here


def _runs_on_gpu(key: PlanKey, compute_capability: str) -> bool:
    if key.settings.hardware_compatible:
        major, minor = compute_capability.split(".")
        return (int(major), int(minor)) >= _AMPERE
    return compute_capability in key.compute_capabilities
