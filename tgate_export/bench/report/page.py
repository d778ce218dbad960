"""What the pages share: the template environment, and pictures as data."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAX_SIDE = 384
"""Pixels that a shown picture's longer side has at most."""


def render(template: str, **context: Any) -> str:
    """Fill a template of this folder; everything that is not `Markup` is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0], "."),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**context)


def picture(image: np.ndarray) -> str:
    """Return an 8-bit picture [H, W, 3] as a data URL: PNG when small, WebP otherwise."""
    from PIL import Image

    shown = Image.fromarray(image)
    buffer = io.BytesIO()
    if max(shown.size) <= 128:
        kind = "png"
        shown.save(buffer, "PNG", optimize=True)
    else:
        kind = "webp"
        shown.thumbnail((MAX_SIDE, MAX_SIDE))
        shown.save(buffer, "WEBP", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def slider(
    title: str,
    prompts: Sequence[str],
    baseline: Sequence[np.ndarray],
    gates: Mapping[int, Sequence[np.ndarray]],
    facts: Mapping[int, str],
    start: int,
) -> dict[str, Any]:
    """Return what the slider shows: every prompt's picture without a gate, and at each.

    Args:
        title: above the pictures.
        prompts: as many as are shown.
        baseline: ungated pictures, by prompt.
        gates: gated pictures, by gate step and prompt; all there.
        facts: a line about each gate step.
        start: gate step that is shown first.
    """
    order = sorted(gates)
    return {
        "title": title,
        "rows": [
            {
                "prompt": prompt,
                "baseline": picture(baseline[index]),
                "gated": [picture(gates[gate][index]) for gate in order],
            }
            for index, prompt in enumerate(prompts)
        ],
        "gates": order,
        "facts": [facts[gate] for gate in order],
        "start": order.index(start),
    }
