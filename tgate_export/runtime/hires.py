"""The hires fix: a small picture first, then a large one that begins with it enlarged.

A model does best at the size that it was trained with; larger, it repeats itself. As in
AUTOMATIC1111's web UI, a first pass makes the picture small, its latents or pixels are enlarged,
and a second pass goes on from them as image-to-image does.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tgate_export.bundle.manifest import Manifest, Range
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.hints import Argument
from tgate_export.parameters import UPSCALERS
from tgate_export.runtime.parameter_values import executed_steps, kept_in_place

STRENGTH = 0.7  # less leaves what enlarging latents does to them
_LARGEST = 16.0  # times as large


@dataclass(frozen=True)
class HiresArguments:
    """What a call says of it; None for what it does not say.

    Attributes:
        hires: how many times as large the result is, or its size "WxH".
        hires_strength: how much is generated anew, above 0 to 1.
        hires_steps: of the second pass, those that are left out included.
        hires_upscaler: one of `UPSCALERS`.
    """

    hires: Any = None
    hires_strength: Any = None
    hires_steps: Any = None
    hires_upscaler: Any = None

    def given(self) -> bool:
        """Return whether there is a second pass.

        Raises:
            InvalidRequestError: how it is made is said, and not how large.
        """
        if self.hires is not None:
            return True
        for name, value in vars(self).items():
            if value is not None:
                raise InvalidRequestError(
                    f"{name} {value} has no effect without hires: say how large the picture is to "
                    'be, as a factor or as "WxH"',
                    field=name,
                )
        return False


@dataclass(frozen=True)
class Hires:
    """The second pass of a checked call.

    Attributes:
        height: pixels.
        width: pixels.
        upscaler: one of `UPSCALERS`.
        values: parameters that are not the first pass's, `num_inference_steps` and `strength`
            among them.
    """

    height: int
    width: int
    upscaler: str
    values: Mapping[str, Any]

    @property
    def in_pixels(self) -> bool:
        """Whether the first pass's picture is decoded, and encoded again."""
        return self.upscaler == "lanczos"

    def as_dict(self) -> dict[str, Any]:
        """Return what makes it again, for JSON."""
        return {
            "width": self.width,
            "height": self.height,
            "strength": self.values["strength"],
            "steps": self.values["num_inference_steps"],
            "upscaler": self.upscaler,
        }


def second_pass(
    manifest: Manifest,
    given: HiresArguments,
    values: Mapping[str, tuple[Any, ...]],
    sides: tuple[int, int],
    most_steps: int,
) -> Hires:
    """Return the second pass of a call.

    Args:
        manifest: the bundle's.
        given: by the call.
        values: of the first pass.
        sides: height and width of the first pass in pixels.
        most_steps: that the sampler can have.

    Raises:
        InvalidRequestError: names the argument and what it may be.
    """
    upscaler = given.hires_upscaler
    if upscaler is None:
        upscaler = next(iter(UPSCALERS))
    if upscaler not in tuple(UPSCALERS):  # which any type can be compared with
        raise InvalidRequestError(
            f"unknown hires_upscaler {upscaler!r:.60}: choose one of {', '.join(UPSCALERS)}",
            field="hires_upscaler",
        )
    strength = STRENGTH if given.hires_strength is None else given.hires_strength
    if not (_is_number(strength) and 0 < strength <= 1):
        raise InvalidRequestError(
            f"hires_strength must be above 0 and at most 1, got {strength!r:.60}",
            field="hires_strength",
        )
    first_steps = values["num_inference_steps"][0]
    steps = first_steps if given.hires_steps is None else given.hires_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most_steps:
        raise InvalidRequestError(
            f"hires_steps must be 1 to {most_steps}, got {steps!r:.60}", field="hires_steps"
        )
    executed = executed_steps(steps, strength)
    if executed < 1:
        raise InvalidRequestError(
            f"hires_strength {strength} of {steps} steps leaves no step to run: raise one of them",
            field="hires_strength",
        )
    of_method = {name: values[name][0] for name in manifest.method.parameters}
    return Hires(
        *_target_sides(manifest, given.hires, *sides), upscaler,
        {
            "num_inference_steps": steps, "strength": float(strength),
            **kept_in_place(manifest, of_method, first_steps, executed),
        },
    )  # fmt: skip


def _target_sides(manifest: Manifest, hires: Any, height: int, width: int) -> tuple[int, int]:
    """Return height and width of the second pass in pixels.

    A factor's sides are rounded down to what the bundle can have.

    Args:
        manifest: the bundle's.
        hires: a factor, or "WxH".
        height: of the first pass in pixels.
        width: as the height.

    Raises:
        InvalidRequestError: it is neither, no larger, or the bundle was not built for it.
    """
    multiple = manifest.size.multiple
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", hires) if isinstance(hires, str) else None
    if match is not None:
        found = int(match[2]), int(match[1])
    else:
        factor = _factor(hires)
        sides = (int(each * factor) // multiple * multiple for each in (height, width))
        found = next(sides), next(sides)
    asked = f"hires {found[1]}x{found[0]}"
    if found[0] < height or found[1] < width or found == (height, width):
        raise InvalidRequestError(
            f"{asked} is not larger than the first picture's {width}x{height}", field="hires"
        )
    if found[0] % multiple or found[1] % multiple:
        raise InvalidRequestError(
            f"{asked} does not fit: its sides must be multiples of {multiple}", field="hires"
        )
    size = manifest.size
    if found[0] not in size.height or found[1] not in size.width:
        both = tuple(
            Range(min=allowed.min, opt=allowed.opt, max=max(allowed.max, most))
            for allowed, most in ((size.width, found[1]), (size.height, found[0]))
        )
        raise InvalidRequestError(
            f"{asked} does not fit: this bundle was built for widths of {size.width} and heights "
            f"of {size.height}",
            "build it for both sizes: ",
            Argument("size", both),
            field="hires",
        )
    return found


def _factor(hires: Any) -> float:
    factor = hires
    if isinstance(hires, str):
        with contextlib.suppress(ValueError):
            factor = float(hires)
    if not (_is_number(factor) and 1 < factor <= _LARGEST):
        raise InvalidRequestError(
            f'hires must be a factor above 1 and at most {_LARGEST:g}, or a size "WxH", got '
            f"{hires!r:.60}",
            field="hires",
        )
    return float(factor)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
