"""What a manifest may say of the tiles of the VAE."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.manifest import VALID, refused
from tgate_export.bundle.manifest_reader import parse_manifest
from tgate_export.bundle.tiles import Tiles


def with_tiles(graph: str, tiles: Any) -> dict[str, Any]:
    """The valid manifest, with tiles of a graph; its latents have 2 pixels."""
    raw = copy.deepcopy(VALID)
    raw["requires"] = ["tiles"]
    raw["graphs"].setdefault(graph, copy.deepcopy(raw["graphs"]["text_encoder"]))["tiles"] = tiles
    return raw


def test_tiles_are_read() -> None:
    raw = with_tiles("vae_decoder", {"size": 16, "overlap": 4})
    manifest = parse_manifest(json.dumps(raw), Path("x"))
    tiles = manifest.graphs["vae_decoder"].tiles
    assert tiles == Tiles(size=16, overlap=4)
    assert tiles is not None
    assert [tiles.count(*size) for size in ((16, 8), (17, 16), (28, 40))] == [1, 2, 6]
    assert manifest.vae_tile == 16
    assert parse_manifest(json.dumps(VALID), Path("x")).vae_tile == 0


FAULTS: list[tuple[str, Any]] = [
    ("full", {"size": 16, "overlap": 4}),
    ("vae_decoder", {"size": 15, "overlap": 4}),
    ("vae_decoder", {"size": 16, "overlap": 3}),
    ("vae_decoder", {"size": 16, "overlap": 16}),
    ("vae_decoder", {"size": 16, "overlap": 18}),
    ("vae_encoder", {"size": 16, "overlap": 18}),
    ("vae_decoder", {"size": 16, "overlap": 0}),
    ("vae_decoder", {"size": 0, "overlap": 4}),
    ("vae_decoder", {"size": 16}),
    ("vae_decoder", {"size": 16, "overlap": 4, "more": 1}),
    ("vae_decoder", {"size": 2**70, "overlap": 4}),
    ("vae_decoder", 16),
]


@pytest.mark.parametrize(("graph", "tiles"), FAULTS)
def test_tiles_that_are_none(graph: str, tiles: Any) -> None:
    assert f"graphs.{graph}.tiles" in refused(with_tiles(graph, tiles))
