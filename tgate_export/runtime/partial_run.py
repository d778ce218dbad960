"""Parts of a run: what one model begins, another one ends (an ensemble of expert denoisers).

As in diffusers, a part is that of the training steps, and not of the steps of the run: of most
samplers these are the same, those with Karras's sigmas take more of their steps at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.parameter_values import executed_steps


@dataclass(frozen=True)
class Refined:
    """Who ended a run that a bundle began, for its record.

    Attributes:
        model: name of the bundle.
        start: part of the run after which it went on.
        parameters: that it alone was given.
    """

    model: str
    start: float
    parameters: Mapping[str, Any]


def check_parts(
    start: Any, end: Any, parameters: Mapping[str, Any], *, begins_with_image: bool
) -> None:
    """Refuse a beginning and an end, or a strength, that make no sense.

    Args:
        start: part of the run after which it begins; None for a whole run.
        end: part of the run after which it ends; None for a whole run.
        parameters: of the call.
        begins_with_image: whether it begins with a picture or with latents.

    Raises:
        InvalidRequestError: names the argument and what it may be.
    """
    for name, part in (("denoising_start", start), ("denoising_end", end)):
        number = isinstance(part, int | float) and not isinstance(part, bool)
        if part is not None and not (number and 0 < part < 1):
            raise InvalidRequestError(
                f"{name} must be above 0 and below 1, got {part!r:.60}", field=name
            )
    if start is not None and end is not None and start >= end:
        raise InvalidRequestError(
            f"denoising_start {start} is not before denoising_end {end}", field="denoising_start"
        )
    strength = parameters.get("strength")
    if start is None:
        if strength is not None and not begins_with_image:
            raise InvalidRequestError(
                f"strength {strength} has no effect without an image", field="strength"
            )
        return
    if not begins_with_image:
        raise InvalidRequestError(
            f"denoising_start {start} needs an image: the latents that another model ended with",
            field="denoising_start",
        )
    if strength is not None:
        raise InvalidRequestError(
            f"strength {strength} has no effect beside denoising_start: leave it out",
            field="strength",
        )


def executed_of(
    values: Mapping[str, tuple[Any, ...]],
    steps: int,
    start: float | None,
    end: float | None,
    *,
    by_strength: bool,
) -> int:
    """Return how many steps run, which the default of the gate is scaled to.

    Of a part of a run, about as many.

    Args:
        values: of the call's parameters.
        steps: of the whole run.
        start: part of it after which it begins.
        end: part of it after which it ends.
        by_strength: it begins with an image that is noised as far as `strength` says.

    Raises:
        InvalidRequestError: none would run.
    """
    executed = steps
    if by_strength:
        strength = values["strength"][0]
        executed = executed_steps(steps, strength)
        if executed < 1:
            raise InvalidRequestError(
                f"strength {strength} of {steps} steps leaves no step to run: raise one of them",
                field="strength",
            )
    if start is not None:
        executed = steps - round(steps * start)
    if end is not None:
        executed -= steps - round(steps * end)
    return max(1, executed)
