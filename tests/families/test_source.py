"""Models are checked before anything heavy is imported, and nothing is ever unpickled."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_folder import WEIGHTS, edit_json, write_json
from tgate_export.common.errors import InvalidRequestError, ModelError, TGateError
from tgate_export.families import geometry
from tgate_export.families.source import resolve_source


def refused(model: str | Path, error: type[TGateError] = ModelError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        resolve_source(str(model), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_complete_folder_is_accepted(pipeline: Path) -> None:
    source = resolve_source(str(pipeline))
    assert (source.kind, source.name, source.directory) == ("local", "mine", pipeline)
    assert geometry.vae_downscale(source) == 4
    assert geometry.default_size(source) == (32, 32)
    assert geometry.size_multiple(source, dynamic=False) == 4
    assert geometry.size_multiple(source, dynamic=True) == 8
    assert set(source.files()) == {
        path.relative_to(pipeline).as_posix() for path in pipeline.rglob("*") if path.is_file()
    }


def test_fingerprint_depends_on_every_file(pipeline: Path) -> None:
    before = resolve_source(str(pipeline)).record().fingerprint
    assert resolve_source(str(pipeline)).record().fingerprint == before
    (pipeline / "README.md").write_text("not used")
    assert resolve_source(str(pipeline)).record().fingerprint == before
    seen = {before}
    for name in resolve_source(str(pipeline)).files():
        path = pipeline / name
        original = path.read_bytes()
        path.write_bytes(original[:-1] + b"\x01" if path.suffix == ".safetensors"
                         else original + b" ")  # fmt: skip
        seen.add(resolve_source(str(pipeline)).record().fingerprint)
        path.write_bytes(original)
    assert len(seen) == 1 + len(resolve_source(str(pipeline)).files())


@pytest.mark.parametrize(
    ("model", "near"), [("shape", "shapes"), ("SD15", "sd15"), ("sd1.5", "sd15"), ("sd-15", "sd15")]
)
def test_unknown_name_with_near_matches(model: str, near: str) -> None:
    message = refused(model, InvalidRequestError)
    assert f"did you mean {near}" in message


def test_unknown_name_without_near_matches() -> None:
    message = refused("zzzzzz", InvalidRequestError)
    assert "'zzzzzz'" in message
    assert "known: shapes, " in message


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "a/b/c", "~/nowhere"])
def test_folder_that_is_not_there(model: str) -> None:
    assert f"{model}: no such folder" in refused(model, InvalidRequestError)


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    assert "no model_index.json" in refused(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", "{}", '{"_class_name": 3}'])
def test_damaged_index(pipeline: Path, content: str) -> None:
    (pipeline / "model_index.json").write_text(content)
    assert "model_index.json" in refused(pipeline)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("FluxPipeline", "jointly"),
        ("FluxImg2ImgPipeline", "jointly"),
        ("StableDiffusion3Pipeline", "jointly"),
        (
            "StableDiffusionXLInpaintPipeline",
            "(Stable Diffusion 1.x and 2.x)",
        ),
        ("StableDiffusionInpaintPipeline", "(Stable Diffusion 1.x and 2.x)"),
    ],
)
def test_other_pipelines_are_refused_with_the_reason(
    pipeline: Path, name: str, reason: str
) -> None:
    write_json(pipeline / "model_index.json", {"_class_name": name})
    message = refused(pipeline)
    assert f"is a {name}" in message
    assert reason in message


def test_inpainting_unet(pipeline: Path) -> None:
    edit_json(pipeline / "unet" / "config.json", in_channels=9)
    message = refused(pipeline)
    assert "takes 9 channels" in message
    assert "inpainting" in message


@pytest.mark.parametrize("key", ["addition_embed_type", "class_embed_type"])
def test_unet_with_more_conditions(pipeline: Path, key: str) -> None:
    edit_json(pipeline / "unet" / "config.json", **{key: "text_time"})
    assert key in refused(pipeline)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_component(pipeline: Path, component: str) -> None:
    shutil.rmtree(pipeline / component)
    assert f"lacks the component {component}/" in refused(pipeline)


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth"])
def test_pickled_weights_are_refused(pipeline: Path, component: str, suffix: str) -> None:
    weights = pipeline / component / WEIGHTS[component]
    weights.unlink()
    pickled = weights.with_suffix(suffix)
    pickled.write_bytes(b"never read")
    message = refused(pipeline)
    assert pickled.name in message
    assert "never loaded" in message
    assert "safe_serialization=True" in message


@pytest.mark.parametrize("component", WEIGHTS)
def test_missing_weights(pipeline: Path, component: str) -> None:
    (pipeline / component / WEIGHTS[component]).unlink()
    assert f"{pipeline / component} has no safetensors weights" in refused(pipeline)


@pytest.mark.parametrize("component", WEIGHTS)
def test_truncated_weights(pipeline: Path, component: str) -> None:
    weights = pipeline / component / WEIGHTS[component]
    size = weights.stat().st_size
    os.truncate(weights, size - 1)
    message = refused(pipeline)
    assert str(weights) in message
    assert f"{size - 1} bytes, its header says {size}" in message


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x01", struct.pack("<Q", 1000) + b'{"a', struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 14) + b'{"weight": {}}',
        struct.pack("<Q", 38) + b'{"w": {"data_offsets": ["0", "many"]}}',
    ],
    ids=["empty", "short", "cut", "list", "huge", "no-offsets", "words"],
)  # fmt: skip
def test_file_that_is_no_safetensors(pipeline: Path, content: bytes) -> None:
    weights = pipeline / "unet" / WEIGHTS["unet"]
    weights.write_bytes(content)
    assert f"{weights} is not a safetensors file" in refused(pipeline)


def test_git_lfs_pointers(pipeline: Path) -> None:
    for name in ("unet/" + WEIGHTS["unet"], "unet/config.json", "tokenizer/tokenizer.json"):
        content = (pipeline / name).read_bytes()
        (pipeline / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        message = refused(pipeline)
        assert str(pipeline / name) in message
        assert "git lfs pull" in message
        (pipeline / name).write_bytes(content)
    assert resolve_source(str(pipeline))


def test_missing_shard(pipeline: Path) -> None:
    index = pipeline / "unet" / f"{WEIGHTS['unet']}.index.json"
    write_json(index, {"weight_map": {"a": WEIGHTS["unet"], "b": "second.safetensors"}})
    assert "second.safetensors is missing" in refused(pipeline)
    write_json(index, {"weight_map": ["second.safetensors"]})
    assert "no weight_map" in refused(pipeline)


@pytest.mark.parametrize("component", ["unet", "vae"])
@pytest.mark.parametrize("channels", [None, [], 32])
def test_damaged_configuration(pipeline: Path, component: str, channels: object) -> None:
    edit_json(pipeline / component / "config.json", block_out_channels=channels)
    source = resolve_source(str(pipeline))
    with pytest.raises(ModelError, match=f"{component}/config.json has no block_out_channels"):
        geometry.size_multiple(source, dynamic=True)


def test_random_weights_need_no_weight_files(pipeline: Path) -> None:
    for component, name in WEIGHTS.items():
        (pipeline / component / name).unlink()
    shutil.rmtree(pipeline / "tokenizer")
    source = resolve_source(str(pipeline), "random")
    assert source.kind == "random"
    assert not any(name.endswith(".safetensors") for name in source.files())
    assert resolve_source("sd15", "random").record().fingerprint
