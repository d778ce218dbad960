"""A model with LoRA files: which of them fit, and what of it depends on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import loras, tiny
from tests.support.once import made_once
from tgate_export.bundle.manifest import Range, Size
from tgate_export.common.errors import InvalidRequestError, ModelError, TGateError
from tgate_export.export.unit import unit_key
from tgate_export.families.loading import load_component
from tgate_export.families.loras import are_applied, notes
from tgate_export.families.source import ModelSource, resolve_source
from tgate_export.families.units import units
from tgate_export.methods import tgate_v2

SIDE = Range(min=16, opt=16, max=16)
SIZE = Size(height=SIDE, width=SIDE, multiple=2)


@pytest.fixture
def model(tiny_pipeline_dir: Path) -> str:
    return str(tiny_pipeline_dir)


def file_of(path: Path, **widths: int) -> Path:
    """A LoRA of one layer each of some components."""
    tensors = {}
    for component, width in widths.items():
        layer = (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
            if component == "unet"
            else "text_model.encoder.layers.0.self_attn.q_proj"
        )
        pair = torch.ones(2, width), torch.ones(32, 2)
        tensors |= loras.peft(f"{component}.", {layer: pair})
    return loras.save(tensors, path)


def keys(source: ModelSource) -> dict[str, str]:
    hashes = source.hashes()
    return {
        unit.name: unit_key(
            source, unit, hashes, precision="fp32", size=SIZE, batch=SIDE,
            method=tgate_v2.METHOD, phases=("full", "gated"),
        )
        for unit in units(source, image_to_image=True)
    }  # fmt: skip


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_only_what_a_file_changes_depends_on_it(model: str, tmp_path: Path) -> None:
    unet = str(file_of(tmp_path / "a.safetensors", unet=32))
    text = str(file_of(tmp_path / "b.safetensors", text_encoder=32))
    plain = resolve_source(model)
    found = {
        name: resolve_source(model, loras=given)
        for name, given in {
            "unet": [(unet, 1.0)],
            "half": [(unet, 0.5)],
            "text": [(text, 1.0)],
            "both": [(text, 1.0), (unet, 1.0)],
            "turned": [(unet, 1.0), (text, 1.0)],
        }.items()
    }
    unit_keys = {name: keys(source) for name, source in found.items()}
    assert changed(keys(plain), unit_keys["unet"]) == {"denoiser"}
    assert changed(unit_keys["unet"], unit_keys["half"]) == {"denoiser"}
    assert changed(keys(plain), unit_keys["text"]) == {"text_encoder"}
    assert changed(unit_keys["text"], unit_keys["both"]) == {"denoiser"}
    assert unit_keys["both"] == unit_keys["turned"]
    prints = {source.record().fingerprint for source in (plain, *found.values())}
    assert len(prints) == 6


def test_it_is_the_content_that_counts(model: str, tmp_path: Path) -> None:
    one = file_of(tmp_path / "a.safetensors", unet=32)
    (tmp_path / "else").mkdir()
    other = Path(shutil.copy(one, tmp_path / "else" / "b.safetensors"))
    first, second = (resolve_source(model, loras=[(str(file), 2.0)]) for file in (one, other))
    assert keys(first) == keys(second)
    records = first.record(), second.record()
    assert records[0].fingerprint == records[1].fingerprint
    (lora,) = records[0].loras
    assert (lora.file, lora.scale) == (str(one), 2.0)
    assert records[0].given_loras() == ((str(one), 2.0),)
    assert are_applied([(str(other), 2.0)], records[0].loras)
    assert not are_applied([(str(other), 1.0)], records[0].loras)
    assert not are_applied([], records[0].loras)
    file_of(other, unet=32, text_encoder=32)
    assert not are_applied([(str(other), 2.0)], records[0].loras)


def test_alpha_beside_a_file_counts(model: str, tmp_path: Path) -> None:
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    pair = torch.ones(2, 32), torch.ones(32, 2)
    file = loras.save(loras.peft("base_model.model.", {layer: pair}), tmp_path / "a.safetensors")
    found = []
    for alpha in (2, 3):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        source = resolve_source(model, loras=[(str(file), 1.0)])
        found.append((keys(source), source.record().fingerprint))
    assert changed(found[0][0], found[1][0]) == {"denoiser"}
    assert found[0][1] != found[1][1]


def test_random_weights_are_changed_too(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.safetensors", unet=32)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    tiny.save("sd15", tmp_path / "p")
    found = [
        load_component(
            resolve_source(str(tmp_path / "p"), "random", loras=given), "unet", "fp32"
        ).state_dict()
        for given in ([], [(str(file), 0.5)])
    ]
    torch.testing.assert_close(found[1][path], found[0][path] + 0.5 * 2)
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == [path]


def refused(error: type[TGateError], model: str, *given: tuple[Path | str, float]) -> str:
    with pytest.raises(error) as caught:
        resolve_source(model, loras=[(str(file), scale) for file, scale in given])
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_of_another_model(
    model: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wide = file_of(tmp_path / "xl.safetensors", unet=2048)
    assert "attn2.to_k reads text of width 2048, and the model's has 32" in (
        refused(ModelError, model, (wide, 1.0))
    )
    second = file_of(tmp_path / "xl.safetensors", unet=32, text_encoder_2=48)
    assert "it changes text_encoder_2, and Stable Diffusion 1.x and 2.x has none" in (
        refused(ModelError, model, (second, 1.0))
    )
    pixart = made_once(
        tmp_path_factory, "pipelines/pixart-alpha", lambda path: tiny.save("pixart-alpha", path)
    )
    message = refused(InvalidRequestError, str(pixart), (second, 1.0))
    assert "LoRA is for Stable Diffusion and SDXL, and this is PixArt" in message


def test_a_file_that_is_given_twice(model: str, tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.safetensors", unet=32)
    (tmp_path / "link.safetensors").symlink_to(file)
    (tmp_path / "else").mkdir()
    other = file_of(tmp_path / "else" / "a.safetensors", unet=32)
    for again in (file, tmp_path / "link.safetensors"):
        assert "is given twice" in refused(InvalidRequestError, model, (file, 1.0), (again, 0.5))
    # Another file may have the same name.
    source = resolve_source(model, loras=[(str(file), 1.0), (str(other), 1.0)])
    assert [lora.path for lora in source.loras] == [file, other]


def test_notes(model: str, tmp_path: Path) -> None:
    given: list[Any] = [
        (str(file_of(tmp_path / f"{name}.safetensors", unet=32)), 1.0) for name in ("a", "lcm-lora")
    ]
    (note,) = notes(resolve_source(model, loras=given).loras)
    assert note[0].startswith("lcm-lora.safetensors: its name says lcm.")  # type: ignore[union-attr]
