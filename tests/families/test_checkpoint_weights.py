"""What is loaded from a checkpoint is what the pipeline had, to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.support import checkpoints, tiny
from tests.support.checkpoints import Tensors
from tgate_export.common.errors import ModelError
from tgate_export.families.loading import load
from tgate_export.families.source import resolve_source

# The tiny pipeline, and how a checkpoint of it is written.
LAYOUTS = [
    ("sd15", "sd1"), ("sd21", "sd2"), ("lcm", "sd1"), ("sdxl", "sdxl"), ("sd15", "diffusers"),
    ("sdxl", "diffusers"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            tiny.save(name, root / name)
        return root / name

    return folder


def loaded(model: Path, precision: str = "fp32", **options: Any) -> dict[str, Tensors]:
    parts = load(resolve_source(str(model), **options), precision)  # type: ignore[arg-type]
    return {name: module.state_dict() for name, module in parts.modules.items()}


def same(one: dict[str, Tensors], other: dict[str, Tensors]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].keys() == other[name].keys()
        and all(torch.equal(one[name][key], other[name][key]) for key in one[name])
        for name in one
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_every_tensor_is_the_pipelines(
    pipelines: Callable[[str], Path], tmp_path: Path, name: str, layout: str, precision: str
) -> None:
    folder = pipelines(name)
    file = checkpoints.write(folder, layout, tmp_path / "model.safetensors")
    found = loaded(file, precision, config=str(folder))
    assert same(found, loaded(folder, precision))


@pytest.mark.parametrize(
    ("name", "layout", "pipeline"),
    [("sd15", "sd1", "StableDiffusionPipeline"), ("sdxl", "sdxl", "StableDiffusionXLPipeline")],
)
def test_diffusers_loads_the_same(
    pipelines: Callable[[str], Path], tmp_path: Path, name: str, layout: str, pipeline: str
) -> None:
    """The files are what others read, too, and are read alike."""
    folder = pipelines(name)
    file = checkpoints.write(folder, layout, tmp_path / "model.safetensors")
    theirs = getattr(diffusers, pipeline).from_single_file(
        str(file), config=str(folder), local_files_only=True
    )
    found = loaded(file, config=str(folder))
    assert same(found, {part: getattr(theirs, part).state_dict() for part in found})


def halved(tensors: Tensors) -> Tensors:
    return {key: tensor.half() for key, tensor in tensors.items()}


def test_half_precision_is_widened(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    folder = pipelines("sd15")
    tensors = checkpoints.sd1(checkpoints.parts_of(folder))
    file = checkpoints.save(halved(tensors), tmp_path / "model.safetensors")
    found, whole = loaded(file, config=str(folder)), loaded(folder)
    for name, tensor in whole["unet"].items():
        assert torch.equal(found["unet"][name], tensor.half().float())


def old_names(tensors: Tensors) -> Tensors:
    """As merges of 2022 have CLIP's tensors."""
    return {key.replace("transformer.text_model.", "transformer."): value
            for key, value in tensors.items()}  # fmt: skip


def linear(tensors: Tensors) -> Tensors:
    """The VAE's attention, and the UNet's ends of transformers, as linear layers."""
    return {
        key: value[:, :, 0, 0] if value.ndim == 4 and value.shape[2:] == (1, 1) and (
            ".attn_1." in key or "proj_" in key
        ) else value
        for key, value in tensors.items()
    }  # fmt: skip


def bare_unet(tensors: Tensors) -> Tensors:
    """The UNet without a prefix, and the others in theirs."""
    return {key.removeprefix("model.diffusion_model."): value for key, value in tensors.items()}


def averaged_beside(tensors: Tensors) -> Tensors:
    averaged = {
        "model_ema." + "".join(key.split(".")[1:]): value + 1
        for key, value in tensors.items()
        if key.startswith("model.diffusion_model.")
    }
    return tensors | averaged


@pytest.mark.parametrize("change", [old_names, linear, bare_unet, averaged_beside])
def test_other_ways_to_write_it(
    pipelines: Callable[[str], Path], tmp_path: Path, change: Callable[[Tensors], Tensors]
) -> None:
    folder = pipelines("sd15")
    tensors = change(checkpoints.sd1(checkpoints.parts_of(folder)))
    file = checkpoints.save(tensors, tmp_path / "model.safetensors")
    assert same(loaded(file, config=str(folder)), loaded(folder))


def test_parts_that_are_missing_come_from_the_folder(
    pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    """A UNet alone, in diffusers' names, as LCMs are shared."""
    folder = pipelines("lcm")
    changed = {key: value + 1 for key, value in checkpoints.parts_of(folder)["unet"].items()}
    file = checkpoints.save(changed, tmp_path / "unet.safetensors")
    found, whole = loaded(file, config=str(folder)), loaded(folder)
    assert all(torch.equal(found["unet"][key], value) for key, value in changed.items())
    assert same({**found, "unet": {}}, {**whole, "unet": {}})


@pytest.mark.parametrize("layout", ["ldm", "ldm in a checkpoint", "diffusers", "diffusers of 2022"])
def test_another_vae(pipelines: Callable[[str], Path], tmp_path: Path, layout: str) -> None:
    folder = pipelines("sd15")
    parts = checkpoints.parts_of(folder)
    other = {key: value + 1 for key, value in parts["vae"].items()}
    written = other if layout.startswith("diffusers") else checkpoints.vae_to_ldm(other)
    if layout.endswith("2022"):
        for now, once in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                          ("to_out.0", "proj_attn")):  # fmt: skip
            written = {key.replace(f".{now}.", f".{once}."): v for key, v in written.items()}
    if layout.endswith("checkpoint"):
        written = checkpoints.prefixed("first_stage_model.", written)
    file = checkpoints.save(checkpoints.sd1(parts), tmp_path / "model.safetensors")
    vae = checkpoints.save(written, tmp_path / "other.safetensors")
    found = loaded(file, config=str(folder), vae=str(vae))
    assert same({"vae": found["vae"]}, {"vae": other})
    whole = loaded(folder)
    assert same({**found, "vae": {}}, {**whole, "vae": {}})


def lose(prefix: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[max(key for key in tensors if key.startswith(prefix))]

    return change


def resize(prefix: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        key = max(key for key in tensors if key.startswith(prefix))
        tensors[key] = torch.zeros([side + 1 for side in tensors[key].shape])

    return change


def add(key: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[key] = torch.zeros(3)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lose("model.diffusion_model.time_embed"), "it lacks time_embedding."),
        (lose("first_stage_model.encoder"), "it lacks encoder."),
        (lose("cond_stage_model.transformer.text_model.final"), "it lacks "),
        (resize("model.diffusion_model.output_blocks"), "expected ["),
        (resize("first_stage_model.post_quant"), "expected ["),
        (resize("cond_stage_model.transformer.text_model.final"), "are not those of its"),
        (add("model.diffusion_model.input_blocks.1.0.in_layers.9.weight"), "as well (1 in all)"),
        (add("cond_stage_model.transformer.text_model.more.weight"), "more.weight (1 in all)"),
    ],
)
def test_weights_that_do_not_fit(
    pipelines: Callable[[str], Path], tmp_path: Path, change: Callable[[Tensors], None], reason: str
) -> None:
    folder = pipelines("sd15")
    tensors = checkpoints.sd1(checkpoints.parts_of(folder))
    change(tensors)
    file = checkpoints.save(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        loaded(file, config=str(folder))
    message = str(caught.value)
    assert reason in message
    assert str(file) in message
    assert "\n" not in message


def test_a_file_that_changes_after_it_was_checked(
    pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pipelines("sd15"), tmp_path / "p"))
    tensors = checkpoints.sd1(checkpoints.parts_of(folder))
    file = checkpoints.save(tensors, tmp_path / "model.safetensors")
    source = resolve_source(str(file), config=str(folder))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"cannot load .*model\.safetensors"):
        load(source, "fp32")
