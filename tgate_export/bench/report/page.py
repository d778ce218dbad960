"""What the pages share: the template environment, and pictures as data."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tgate_export.bench.result import Row
from tgate_export.bench.tables import milliseconds, short_name

MAX_SIDE = 512
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


def chooser(
    title: str,
    prompts: Sequence[str],
    rows: Sequence[Row],
    pictures: Mapping[str, Sequence[np.ndarray]],
    use: str | None,
) -> dict[str, Any] | None:
    """Return what lets a reader set any row's pictures beside the baseline's.

    Args:
        title: above the pictures.
        prompts: those that are shown.
        rows: in order; those without pictures are left out.
        pictures: by id of the row, and by prompt.
        use: id of the row that is shown first; by default that of the middle.

    Returns:
        None where there is nothing to compare.
    """
    base = next((row for row in rows if row.kind == "baseline" and row.id in pictures), None)
    others = [row for row in rows if row is not base and row.id in pictures]
    if base is None or not others or not prompts:
        return None
    ids = [row.id for row in others]
    return {
        "title": title,
        "baseline": f"{base.num_inference_steps} plain steps",
        "options": [{"name": short_name(row), "fact": _fact(row)} for row in others],
        "start": ids.index(use) if use in ids else len(ids) // 2,
        "rows": [
            {
                "prompt": prompt,
                "baseline": picture(pictures[base.id][index]),
                "shown": [picture(pictures[row][index]) for row in ids],
            }
            for index, prompt in enumerate(prompts)
        ],
    }


def _fact(row: Row) -> str:
    """Say in a line what a row takes and gives."""
    ratio = f", {row.speedup.value:.2f} times as fast" if row.speedup else ""
    found = f"{row.label}: {milliseconds(row.latency.p50)} ms{ratio}"
    if row.quality is None:
        return found
    if share := row.quality.adherence:
        found += f"; adherence {share.share:.1%}"
    return f"{found}; SSIM {row.quality.similarity.ssim:.3f}"
