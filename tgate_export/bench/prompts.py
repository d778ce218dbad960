"""Prompts to measure with: a file's, those of the `shapes` world, or a few general ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.data.shapes_world import all_captions

GENERAL = (
    "a watercolour fox in a snowy forest",
    "portrait photo of an old fisherman, natural light",
    "a red sports car parked beside a lighthouse at sunset",
    "a bowl of ramen on a wooden table, studio lighting",
    "an isometric drawing of a small city with canals",
    "a corgi wearing sunglasses on a beach",
    "a gothic cathedral in the mist, oil painting",
    "close-up of a dragonfly on a green leaf",
)


def is_shapes(manifest: Manifest) -> bool:
    """Whether pictures can be judged by `bench.adherence`: the demo pipeline of the package."""
    return (manifest.source.kind, manifest.source.model) == ("packaged", "shapes")


def default_prompts(manifest: Manifest, count: int, seed: int = 0) -> tuple[str, ...]:
    """Return `count` prompts that suit a bundle, in an order that the seed decides.

    Those of `shapes` are shuffled, none repeated before all were used; there are 224.
    """
    prompts = all_captions() if is_shapes(manifest) else GENERAL
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += [prompts[index] for index in rng.permutation(len(prompts))]
    return tuple(chosen[:count])


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read a prompts file: UTF-8, one prompt a line; empty lines are left out.

    Raises:
        InvalidRequestError: it cannot be read, is not UTF-8, or holds no prompt.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8, one prompt a line"
        ) from None
    if prompts := tuple(line.strip() for line in text.splitlines() if line.strip()):
        return prompts
    raise InvalidRequestError(f"{path} holds no prompt: write one a line")
