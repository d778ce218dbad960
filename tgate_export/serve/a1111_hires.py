"""A1111's hires fix: from its fields to the arguments of a second pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tgate_export.common.errors import InvalidRequestError
from tgate_export.parameters import UPSCALERS
from tgate_export.runtime.parameter_values import executed_steps
from tgate_export.serve.fields import Fields

# What would change the second pass in A1111 and cannot here, with the values that change nothing.
_INERT: Mapping[str, tuple[Any, ...]] = {
    "hr_checkpoint_name": ("", "Use same checkpoint"), "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"), "hr_prompt": ("",), "hr_negative_prompt": ("",),
    "hr_additional_modules": ([], ["Use same choices"]),
}  # fmt: skip
_STRENGTH = 0.75  # where a body does not say it
# What `GET /sdapi/v1/latent-upscale-modes` and `/sdapi/v1/upscalers` list.
LATENT_UPSCALERS = [{"name": name} for name in UPSCALERS.values() if name.startswith("Latent")]
PIXEL_UPSCALERS = [
    {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
    for name in UPSCALERS.values()
    if not name.startswith("Latent")
]


def second_pass(
    taken: Fields,
    strength: float | None,
    sides: tuple[int, int],
    multiple: int,
    steps: int,
    most_steps: int,
) -> dict[str, Any]:
    """Return the arguments of a second pass.

    Args:
        taken: the body's fields.
        strength: its `denoising_strength`.
        sides: width and height of the first pass in pixels.
        multiple: that divides every side.
        steps: of the first pass.
        most_steps: that the sampler can have.
    """
    width, height = sides
    strength = _STRENGTH if strength is None else strength
    taken.refuse_unless(_INERT)
    scale = taken.take("hr_scale", float, 2.0)
    wide, high = taken.take("hr_resize_x", int, 0), taken.take("hr_resize_y", int, 0)
    if wide or high:
        both = wide or high * width // height, high or wide * height // width
        if abs(both[0] * height - both[1] * width) > multiple * max(width, height):
            raise InvalidRequestError(
                f"hr_resize_x {wide} and hr_resize_y {high} have another shape than {width}x"
                f"{height}: give one of them",
                field="hr_resize_x",
            )
        scale = "x".join(str(side // multiple * multiple) for side in both)
    modes = {name: ours for ours, name in UPSCALERS.items()} | {name: name for name in UPSCALERS}
    upscaler = taken.text("hr_upscaler") or UPSCALERS["latent"]
    if upscaler not in modes:
        raise InvalidRequestError(
            f"hr_upscaler must be one of {', '.join(UPSCALERS.values())}, got {upscaler!r:.60}",
            field="hr_upscaler",
        )
    return {
        "hires": scale,
        "hires_strength": strength,
        "hires_steps": _whole_run(
            taken.take("hr_second_pass_steps", int, 0) or steps, strength, most_steps
        ),
        "hires_upscaler": modes[upscaler],
    }


def _whole_run(executed: int, strength: float, most: int) -> int:
    """Return of how many steps so many are executed: in A1111 all that are asked for are.

    What cannot be is returned as it is, to be refused.

    Args:
        executed: steps of the second pass.
        strength: of them, above 0 to 1.
        most: steps that there can be; fewer are executed where that is too few.
    """
    if not (0 < strength <= 1 and 1 <= executed <= most):
        return executed
    steps = int(min(executed / strength, most))
    while steps < most and executed_steps(steps, strength) < executed:
        steps += 1
    return steps
