"""Records of plan sets: a bundle with a damaged, foreign or stale one does not open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.integrity import open_bundle, read_manifest
from tgate_export.bundle.manifest import Range
from tgate_export.bundle.plans import (
    Plan,
    PlanKey,
    PlanSettings,
    ShapeRange,
    plan_set_name,
    write_record,
)
from tgate_export.common.errors import BundleError

ONE = Range(min=1, opt=1, max=1)


def key(bundle: Path, graph: str, **changes: Any) -> PlanKey:
    manifest = read_manifest(bundle)
    entry = manifest.graphs[graph]
    values: dict[str, Any] = {
        "graph": graph,
        "graph_sha256": manifest.files[entry.file].sha256,
        "weights_sha256": manifest.files[entry.weights].sha256 if entry.weights else None,
        "library": "tensorrt-rtx",
        "version": "1.7.1.116",
        "compute_capabilities": ("8.9",),
        "precision": "fp32",
        "shapes": {"sample": ShapeRange(min=(1, 4), opt=(1, 4), max=(2, 4))},
        "settings": PlanSettings(),
        "code_sha256": "0" * 64,
    }
    return PlanKey(**(values | changes))


@pytest.fixture
def bundle(tiny_bundle_copy: Path) -> Path:
    """A bundle with a plan set whose engines are no engines: only the record is read here."""
    folder = tiny_bundle_copy / "plans" / "set"
    folder.mkdir(parents=True)
    plans = {}
    for graph in ("full", "sampler"):
        file = folder / f"{graph}.plan"
        file.write_bytes(graph.encode() * 100)
        its = key(tiny_bundle_copy, graph)
        plans[graph] = Plan(
            file=file.name, content=hash_file(file), key=its, key_sha256=its.digest()
        )
    write_record(folder, plans)
    open_bundle(tiny_bundle_copy)
    return tiny_bundle_copy


def edit(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        record = json.loads((folder / "plans.json").read_text())
        change(record)
        (folder / "plans.json").write_text(json.dumps(record))

    return damage


def flip(folder: Path) -> None:
    data = bytearray((folder / "full.plan").read_bytes())
    data[50] ^= 1
    (folder / "full.plan").write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte of a plan": (flip, r"full.plan was changed after the build"),
    "a shorter plan": (
        lambda folder: (folder / "full.plan").write_bytes(b"x"),
        r"full.plan has 1 bytes, 400 were built",
    ),
    "a missing plan": (lambda folder: (folder / "full.plan").unlink(), "full.plan is missing"),
    "an extra file": (
        lambda folder: (folder / "x.plan").write_bytes(b""),
        "x.plan does not belong to the bundle",
    ),
    "no record": (lambda folder: (folder / "plans.json").unlink(), "plans.json is missing"),
    "no JSON": (
        lambda folder: (folder / "plans.json").write_text("{"),
        "cannot read .*plans.json",
    ),
    "the version": (
        edit(lambda r: r["plans"]["full"]["key"].update(version="1.8.0")),
        "plans.json: the key of 'full' was changed after the build",
    ),
    "a shape": (
        edit(lambda r: r["plans"]["full"]["key"]["shapes"]["sample"].update(max=[9, 4])),
        "the key of 'full' was changed",
    ),
    "another graph's key": (
        edit(lambda r: r["plans"].update(gated=r["plans"].pop("full"))),
        "the key of 'gated' was changed",
    ),
    "a path": (
        edit(lambda r: r["plans"]["full"].update(file="../../manifest.json")),
        "plans.full.file",
    ),
    "an unknown field": (edit(lambda r: r.update(x=1)), "plans.json: x: "),
    "a newer schema": (
        edit(lambda r: r.update(schema_version=2)),
        "has schema version 2, this tgate-export reads up to 1",
    ),
    "no plans": (edit(lambda r: r.update(plans={})), "lists no plans"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(bundle: Path, damage: str) -> None:
    hurt, message = DAMAGES[damage]
    hurt(bundle / "plans" / "set")
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)
    assert "plans/set" in str(caught.value)


def test_plans_of_other_graphs_are_stale(bundle: Path) -> None:
    folder = bundle / "plans" / "set"
    stale = key(bundle, "full", graph_sha256="1" * 64)
    content = hash_file(folder / "full.plan")
    plan = Plan(file="full.plan", content=content, key=stale, key_sha256=stale.digest())
    (folder / "sampler.plan").unlink()
    write_record(folder, {"full": plan})
    with pytest.raises(BundleError, match=r"from other graphs than .* \(graph_sha256\)"):
        open_bundle(bundle)


def test_builds_under_way_are_not_looked_at(bundle: Path) -> None:
    shutil.copytree(bundle / "plans" / "set", bundle / "plans" / ".set.building-x")
    (bundle / "plans" / ".set.building-x" / "plans.json").unlink()
    open_bundle(bundle)


def test_differences_name_what_differs(bundle: Path) -> None:
    one = key(bundle, "full")
    other = key(
        bundle, "full", version="1.8.0", settings=PlanSettings(optimization_level=3),
        compute_capabilities=("12.0",),
    )  # fmt: skip
    assert one.differences(one) == ()
    assert one.differences(other) == (
        "compute_capabilities: ('8.9',) and ('12.0',)",
        "settings.optimization_level: None and 3",
        "version: 1.7.1.116 and 1.8.0",
    )


def test_shape_range() -> None:
    shapes = ShapeRange(min=(1, 8, 8), opt=(2, 8, 8), max=(4, 8, 16))
    assert (3, 8, 12) in shapes
    assert (5, 8, 8) not in shapes
    assert (1, 7, 8) not in shapes
    assert (1, 8) not in shapes
    assert not shapes.static
    assert str(shapes) == "1x8x8:2x8x8:4x8x16"


def test_names_are_what_people_choose_by() -> None:
    side = Range(min=256, opt=512, max=1024)
    name = plan_set_name("tensorrt-rtx", "1.7.1", ("8.9", "12.0"), "fp16", ONE, side, side)
    assert name == "tensorrt-rtx-1.7.1-sm89+sm120-fp16-b1-256_512_1024x256_512_1024"
