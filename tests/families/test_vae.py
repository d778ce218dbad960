"""Another VAE in place of a model's own, of a file or a folder: what it is, and what it makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.families.test_loras import changed, keys
from tests.support import checkpoints, taesd, tiny
from tests.support.once import made_once
from tgate_export.build.options import check_options
from tgate_export.common.errors import InvalidRequestError, ModelError, TGateError
from tgate_export.families.geometry import vae_downscale
from tgate_export.families.loading import component_precision, load_component
from tgate_export.families.modules import VaeDecoder, VaeEncoder
from tgate_export.families.source import ModelSource, resolve_source
from tgate_export.families.vae import open_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny TAESD's folder; not to be changed."""
    return made_once(tmp_path_factory, "vaes/taesd", taesd.save)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "pipelines/sdxl", lambda path: tiny.save("sdxl", path))


def resolved(model: Path, vae: Path, **options: Any) -> ModelSource:
    return resolve_source(str(model), vae=str(vae), **options)


def decoded(source: ModelSource, latents: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = VaeDecoder(load_component(source, "vae", "fp32"))(latents)
    return found


@pytest.mark.parametrize("layout", ["folder", "file", "decoder in a file", "author's decoder"])
@torch.no_grad()
def test_layouts_of_taesd(
    tiny_pipeline_dir: Path, folder: Path, tmp_path: Path, layout: str
) -> None:
    tensors = load_file(folder / WEIGHTS)
    file = tmp_path / "taesd.safetensors"
    if layout == "decoder in a file":
        tensors = {key: value for key, value in tensors.items() if key.startswith("decoder")}
    elif layout == "author's decoder":
        tensors = taesd.authors_decoder(folder)
    checkpoints.save(tensors, file)
    source = resolved(tiny_pipeline_dir, folder if layout == "folder" else file)
    assert source.vae is not None
    assert source.vae.encodes == (layout in ("folder", "file"))
    assert vae_downscale(source) == 2
    latents = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    theirs = diffusers.AutoencoderTiny.from_pretrained(folder)
    expected = theirs.decode(latents).sample.permute(0, 2, 3, 1) / 2 + 0.5
    assert torch.equal(decoded(source, latents), expected.clamp(0, 1))
    if source.vae.encodes:
        check_options(source, "fp32", image_to_image=True)
        images = torch.rand(2, 16, 12, 3)
        encoder = VaeEncoder(load_component(source, "vae", "fp32"))
        expected = theirs.encode(2 * images.permute(0, 3, 1, 2) - 1).latents
        assert torch.equal(encoder(images), expected)
    else:
        with pytest.raises(InvalidRequestError, match="has no encoder, which image-to-image needs"):
            check_options(source, "fp32", image_to_image=True)


def test_sizes_of_the_published_ones(tmp_path: Path) -> None:
    """Blocks and channels are told by shapes: those that diffusers has where nothing is said."""
    published = diffusers.AutoencoderTiny()
    checkpoints.save(published.state_dict(), tmp_path / "taesd.safetensors")
    found = open_vae(str(tmp_path / "taesd.safetensors")).config
    assert found is not None
    for name, value in found.items():
        if name != "_class_name":
            theirs = published.config[name]
            assert (list(theirs) if isinstance(theirs, tuple) else theirs) == value, name


@pytest.mark.parametrize(
    "name", ["encoder.layers.1.weight", "decoder.layers.1.weight", f"{'9' * 5000}.bias"]
)
def test_files_that_are_no_taesd(tmp_path: Path, name: str) -> None:
    tensors = {"decoder.layers.0.weight": torch.ones(4, 4, 3, 3), name: torch.ones(4)}
    if "layers" not in name:
        del tensors["decoder.layers.0.weight"]
    elif name.startswith("decoder"):
        more = {f"decoder.layers.{i}.{kind}": torch.ones(1)
                for i in range(1, 600) for kind in ("weight", "conv.0.weight")}  # fmt: skip
        tensors |= more
    file = checkpoints.save(tensors, tmp_path / "taesd.safetensors")
    with pytest.raises(ModelError) as caught:
        open_vae(str(file))
    assert "taesd.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("channels", [5, None, [], [8] * 20_000])
@pytest.mark.parametrize("name", ["block_out_channels", "decoder_block_out_channels"])
def test_folders_without_levels(folder: Path, tmp_path: Path, name: str, channels: object) -> None:
    copy = shutil.copytree(folder, tmp_path / "vae")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {name: channels}))
    with pytest.raises(ModelError, match=rf"{name} is no list of 1 to 16 numbers"):
        open_vae(str(copy))


@torch.no_grad()
def test_it_decodes_in_half_precision(sdxl: Path, folder: Path) -> None:
    """SDXL's own VAE stays in fp32, since it overflows."""
    source = resolved(sdxl, folder)
    assert component_precision(resolve_source(str(sdxl)), "vae", "fp16") == "fp32"
    assert component_precision(source, "vae", "fp16") == "fp16"
    assert next(load_component(source, "vae", "fp16").parameters()).dtype == torch.float16
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(sdxl)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae = diffusers.AutoencoderTiny.from_pretrained(folder)
    call = {"prompt": "a", "num_inference_steps": 1, "height": 16, "width": 16}
    call["latents"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents, images = (pipe(output_type=kind, **call).images for kind in ("latent", "np"))
    vae = load_component(source, "vae", "fp32")
    found = VaeDecoder(vae, by_channel=source.family.latents_by_channel)(latents)
    np.testing.assert_allclose(found.numpy(), images, atol=2e-6)


@pytest.mark.parametrize("layout", ["folder", "ldm", "diffusers"])
@torch.no_grad()
def test_another_full_vae_for_a_folder(
    tiny_pipeline_dir: Path, tmp_path: Path, layout: str
) -> None:
    """A folder's own configuration counts, and for a file the model's."""
    tiny.save("sd15", tmp_path / "p")
    vae = tmp_path / "p" / "vae"
    tensors = {key: value + 0.01 for key, value in load_file(vae / WEIGHTS).items()}
    if layout == "folder":
        checkpoints.save(tensors, vae / WEIGHTS)
        config = json.loads((vae / "config.json").read_text())
        (vae / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
        given = vae
    else:
        named = checkpoints.vae_to_ldm(tensors) if layout == "ldm" else tensors
        given = checkpoints.save(named, tmp_path / "mine.safetensors")
    source = resolved(tiny_pipeline_dir, given)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = diffusers.AutoencoderKL.from_pretrained(tiny_pipeline_dir / "vae")
    theirs.load_state_dict(tensors)
    factor = 0.5 if layout == "folder" else theirs.config.scaling_factor
    expected = theirs.decode(latents / factor).sample.permute(0, 2, 3, 1) / 2 + 0.5
    assert torch.equal(decoded(source, latents), expected.clamp(0, 1))


def test_only_the_vae_depends_on_it(tiny_pipeline_dir: Path, folder: Path, tmp_path: Path) -> None:
    plain = resolve_source(str(tiny_pipeline_dir))
    source = resolved(tiny_pipeline_dir, folder)
    assert changed(keys(plain), keys(source)) == {"vae_encoder", "vae_decoder"}
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    again = resolved(tiny_pipeline_dir, moved)
    assert keys(again) == keys(source)
    records = plain.record(), source.record(), again.record()
    assert records[0].fingerprint != records[1].fingerprint == records[2].fingerprint
    assert [record.vae for record in records] == [None, str(folder), str(moved)]
    own = tiny_pipeline_dir / "vae"
    assert not any(path.is_relative_to(own) for path in source.paths())


def test_random_weights_take_a_folders_configuration(folder: Path, tmp_path: Path) -> None:
    tiny.save("sd15", tmp_path / "p")
    (tmp_path / "vae").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "vae")
    source = resolved(tmp_path / "p", tmp_path / "vae", weights="random")
    assert type(load_component(source, "vae", "fp32")).__name__ == "AutoencoderTiny"
    file = folder / WEIGHTS
    message = refused(InvalidRequestError, tmp_path / "p", file, weights="random")
    assert "weights random takes a folder's configuration, and vae" in message


def refused(error: type[TGateError], model: Path, vae: Path, **options: Any) -> str:
    with pytest.raises(error) as caught:
        resolved(model, vae, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_of_other_models(
    tiny_pipeline_dir: Path, folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pixart = made_once(
        tmp_path_factory, "pipelines/pixart-alpha", lambda path: tiny.save("pixart-alpha", path)
    )
    message = refused(InvalidRequestError, pixart, folder)
    assert "another VAE is for Stable Diffusion and SDXL, and this is PixArt" in message
    taesd.save(tmp_path / "levels", channels=(8, 8, 8))
    message = refused(ModelError, tiny_pipeline_dir, tmp_path / "levels")
    assert "a latent is 4 pixels wide, and 2 of the model's own VAE" in message
    taesd.save(tmp_path / "channels", latent_channels=16)
    for vae in (tmp_path / "channels", tmp_path / "channels" / WEIGHTS):
        message = refused(ModelError, tiny_pipeline_dir, vae)
        assert "its UNet takes 4 channels and its VAE gives 16" in message
    other = diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(64,))
    file = checkpoints.save(other.state_dict(), tmp_path / "kl.safetensors")
    message = refused(ModelError, tiny_pipeline_dir, file)
    assert "has a vae of other sizes than its configuration" in message
    assert message.endswith("give the folder with its config.json: vae='FOLDER'")


def test_what_is_none(tiny_pipeline_dir: Path, folder: Path, tmp_path: Path) -> None:
    assert "is neither a file nor a folder" in (
        refused(InvalidRequestError, tiny_pipeline_dir, tmp_path / "nothing")
    )
    message = refused(ModelError, tiny_pipeline_dir, tiny_pipeline_dir)
    assert message.endswith("has no config.json: give its vae/")
    message = refused(ModelError, tiny_pipeline_dir, tmp_path)
    assert message.endswith("has no config.json: give its file")
    assert "describes a 'UNet2DConditionModel', expected an AutoencoderKL or" in (
        refused(ModelError, tiny_pipeline_dir, tiny_pipeline_dir / "unet")
    )
    encoder = taesd.authors_encoder(folder)
    file = checkpoints.save(encoder, tmp_path / "taesd_encoder.safetensors")
    assert "is TAESD's encoder alone: give its decoder" in (
        refused(ModelError, tiny_pipeline_dir, file)
    )
    unet = tiny_pipeline_dir / "unet" / WEIGHTS
    message = refused(ModelError, tiny_pipeline_dir, unet)
    assert "has no VAE of Stable Diffusion or SDXL" in message
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / WEIGHTS).unlink()
    torch.save({}, copy / "diffusion_pytorch_model.bin")
    assert "has only pickled weights" in refused(ModelError, tiny_pipeline_dir, copy)


def damaged(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    key = "decoder.layers.2.conv.0.weight"
    return [
        {name: value for name, value in tensors.items() if name != key},
        {**tensors, key: torch.zeros(3, 3, 3, 3)},
        {**tensors, "decoder.layers.99.weight": torch.zeros(3)},
        {**tensors, "decoder.layers.0.weight": torch.zeros(())},
        {"decoder.layers.0.weight": torch.zeros(8, 4, 3, 3)},
        {"1.weight": torch.zeros(8, 4, 3, 3)},
        {"1.weight": torch.zeros(8)},
    ]


@pytest.mark.parametrize("case", range(7))
def test_damaged(tiny_pipeline_dir: Path, folder: Path, tmp_path: Path, case: int) -> None:
    tensors = damaged(load_file(folder / WEIGHTS))[case]
    file = checkpoints.save(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(ModelError) as caught:
        load_component(resolved(tiny_pipeline_dir, file), "vae", "fp32")
    assert "\n" not in str(caught.value)
