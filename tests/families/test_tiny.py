"""Every family's folder has tiny pipelines, which no export depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny
from tgate_export.common.code_hash import PACKAGE, imported_files
from tgate_export.families.registry import FAMILIES, family_module
from tgate_export.families.source import resolve_source

KINDS = [(family, kind.name) for family, kinds in tiny.FAMILIES.items() for kind in kinds]


@pytest.mark.parametrize(("family", "name"), KINDS)
def test_each_is_of_its_family(family: str, name: str, tmp_path: Path) -> None:
    tiny.save(name, tmp_path / "pipeline")
    source = resolve_source(str(tmp_path / "pipeline"))
    kind = tiny.PIPELINES[name]
    assert source.family.name == family
    assert kind.video == (source.conditioning().frames is not None)
    # A model that was distilled to need none looks like one that does.
    guided = "classifier-free" if kind.guidance == "none" else kind.guidance
    assert source.guidance == guided


def test_no_two_share_a_name() -> None:
    assert len(tiny.PIPELINES) == len(KINDS)
    assert len({kind.title for kind in tiny.PIPELINES.values()}) == len(KINDS)
    assert tiny.FAMILIES.keys() == FAMILIES.keys()


def test_every_save_is_the_same(tmp_path: Path) -> None:
    """What is exported of one is kept between runs by its content."""
    saved = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        tiny.save("sd15", folder)
        saved.append({file.name: file.read_bytes() for file in folder.rglob("*.safetensors")})
    assert saved[0] == saved[1]
    assert len(saved[0]) == 2  # one name for the weights of the UNet and of the VAE


def test_nothing_is_exported_anew_for_them() -> None:
    families = map(family_module, FAMILIES.values())
    names = imported_files(PACKAGE, "export.export_unit", "build.build", "cli", *families)
    assert "families.stable_diffusion.spec" in names
    assert not [name for name in names if "tiny" in name]
