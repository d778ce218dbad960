"""The parameters of a call: completed with the bundle's defaults, and checked by its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.parameters import PARAMETERS, Parameter, short_name
from tgate_export.runtime.sampler_choice import chosen_sampler
from tgate_export.steps.rule import at_least_fault


def parameter_values(
    manifest: Manifest, given: Mapping[str, Any], prompts: int
) -> dict[str, tuple[Any, ...]]:
    """Return one value for each prompt of all the bundle's parameters but pictures.

    Of a call with an image, `strength` is among them.

    Args:
        manifest: the bundle's.
        given: by name; None stands for the default.
        prompts: how many there are.

    Raises:
        InvalidRequestError: names the parameter and what it may be.
    """
    # Without image-to-image a run may begin with latents. A picture is refused, and not its
    # strength, with how to build a bundle that takes one; see `rebuild`.
    table = dict(manifest.parameters)
    if given.get("image") is not None and "image" not in table:
        table.setdefault("strength", PARAMETERS["strength"])
    for name, value in given.items():
        if value is not None and name not in table:
            _refuse_absent(manifest, name, value)
    values: dict[str, tuple[Any, ...]] = {}
    only = None  # number of steps that the sampler has
    for name, entry in table.items():
        if name == "scheduler" and given.get(name) is not None:
            scheduler, only = chosen_sampler(manifest, given[name])
            values[name] = (scheduler,) * prompts
        elif entry.type != "image":
            values[name] = _each(name, entry, given.get(name), prompts)
    steps = given.get("num_inference_steps")
    if only is not None and steps is not None and steps != only:
        raise InvalidRequestError(
            f"{scheduler} has {only} steps, not {steps}: leave steps out",
            field="num_inference_steps",
        )
    if only is not None:
        values["num_inference_steps"] = (only,) * prompts
    for name in sorted(manifest.graph_parameters):
        if None in values[name]:
            raise InvalidRequestError(
                f"{short_name(name)} is missing: this bundle has no default for it", field=name
            )
    return values


def executed_steps(steps: int, strength: float) -> int:
    """Return how many of the steps run when an image is noised that far, as in diffusers."""
    return min(int(steps * strength), steps)


def method_values(
    manifest: Manifest, given: Mapping[str, Any], steps: int, executed: int
) -> dict[str, int]:
    """Return the values of the method's parameters, whose defaults give way to what is given.

    Args:
        manifest: the bundle's.
        given: by name; None stands for the default.
        steps: of the run.
        executed: those that are not left out.

    Raises:
        InvalidRequestError: two values that contradict each other.
    """
    method = manifest.method
    usual = manifest.defaults.num_inference_steps
    values: dict[str, int] = {}
    for name in method.parameters:
        entry = manifest.parameters[name]
        value = given.get(name)
        if value is None:
            assert isinstance(entry.default, int)  # the manifest was checked
            value = entry.default
            if entry.scaled:  # the default keeps its place when fewer or more steps are executed
                value = max(int(entry.min or 0), round(entry.default * executed / usual))
        values[name] = int(value)
    for name, least in method.at_least.items():
        if values[name] >= values[least]:
            continue
        if given.get(name) is None:
            values[name] = values[least]
        elif given.get(least) is None:
            values[least] = values[name]
        else:
            raise InvalidRequestError(
                at_least_fault(name, values[name], least, values[least]), field=name
            )
    for name, value in values.items():
        if fault := manifest.parameters[name].fault(value):  # a default that gave way
            raise InvalidRequestError(f"{short_name(name)} {fault}", field=name)
    return values


def kept_in_place(
    manifest: Manifest, values: Mapping[str, int], steps: int, executed: int
) -> dict[str, int]:
    """Return the values of the method's parameters for another run with the same prompt.

    Those that are scaled keep their place.

    Args:
        manifest: the bundle's.
        values: of the one run.
        steps: that it executes.
        executed: by the other run.
    """
    kept = dict(values)
    for name, value in values.items():
        entry = manifest.parameters[name]
        if entry.scaled:
            kept[name] = max(int(entry.min or 0), round(value * executed / steps))
    for name, least in manifest.method.at_least.items():
        kept[name] = max(kept[name], kept[least])
    return kept


def _each(name: str, entry: Parameter, value: Any, prompts: int) -> tuple[Any, ...]:
    """Return a parameter's value for each prompt."""
    if value is None:
        return (entry.default,) * prompts
    several = entry.per == "prompt" and isinstance(value, Sequence) and not isinstance(value, str)
    values = [_checked(name, entry, one) for one in (value if several else [value])]
    if len(values) not in (1, prompts):
        raise InvalidRequestError(
            f"{len(values)} values of {name} for {prompts} prompts: give one, or one each",
            field=name,
        )
    return tuple(values * prompts if len(values) == 1 else values)


def _checked(name: str, entry: Parameter, value: Any) -> Any:
    """Return a value in the type that runs have."""
    if entry.type == "choice" and value not in entry.choices:
        raise InvalidRequestError(
            f"unknown {name} {value!r:.60}: this bundle has {', '.join(entry.choices)}", field=name
        )
    if fault := entry.fault(value):
        raise InvalidRequestError(f"{short_name(name)} {fault}", field=name)
    if entry.type == "pair":
        return tuple(value)
    kinds: dict[str, type] = {"integer": int, "number": float, "choice": str}
    return kinds[entry.type](value)


def _changes_nothing(value: Any, inert: float | str | None) -> bool:
    if inert is None or isinstance(inert, str):
        return value == inert
    return bool(value <= inert)


def _refuse_absent(manifest: Manifest, name: str, value: Any) -> None:
    """Refuse a parameter that a bundle lacks, unless its value changes nothing."""
    declared = PARAMETERS.get(name)
    if declared is None:
        raise InvalidRequestError(
            f"unknown parameter {name!r}: this bundle has {', '.join(manifest.parameters)}",
            field=name,
        )
    if declared.type == "image":
        return  # refused with how to build a bundle that takes it; see `rebuild`
    several = declared.per == "prompt" and isinstance(value, Sequence)
    for one in value if several else [value]:
        fault = declared.fault(one)
        if fault and declared.inert is not None:
            raise InvalidRequestError(f"{name} {fault}", field=name)
        if fault or not _changes_nothing(one, declared.inert):
            raise InvalidRequestError(
                f"{name} {one} has no effect: {declared.absent}; leave it out", field=name
            )
