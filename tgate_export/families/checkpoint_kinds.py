"""Which model a checkpoint is: by its UNet's shapes, and by marks where they say too little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgate_export.common.errors import ModelError
from tgate_export.common.hints import Argument
from tgate_export.common.safetensors_header import Header, read_values
from tgate_export.families.checkpoint_configs import Changes, packaged
from tgate_export.families.checkpoint_unet import (
    Depths,
    UNet,
    depth_changes,
    differences,
    of_config,
)

# The UNet's width of text, and whether it takes pooled text and sizes beside it -> configuration.
_BASES = {
    (768, False): "sd15", (1024, False): "sd21", (2048, True): "sdxl", (1280, True): "sdxl-refiner",
}  # fmt: skip
_INPUTS = {
    5: "a depth-to-image UNet",
    7: "an upscaler's UNet",
    8: "a UNet that edits images (InstructPix2Pix)",
    9: "an inpainting UNet",
}
# SDXL's relatives by their transformer layers on the way down and up.
_RELATIVES: dict[tuple[Depths, Depths], str] = {
    (((0, 0), (2, 2), (4, 4)), ((4, 4, 10), (2, 1, 1), (0, 0, 0))): "SSD-1B",
    (((0, 0), (1, 1), (2, 2)), ((2, 2, 2), (1, 1, 1), (0, 0, 0))): "Segmind Vega",
}
# By the deviation of this tensor ComfyUI tells velocity (above) from noise in Stable Diffusion 2.x.
_TELLING = {
    "ldm": "output_blocks.11.1.transformer_blocks.0.norm1.bias",
    "diffusers": "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias",
}
_THRESHOLD = 0.09


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is.

    Attributes:
        config: the packaged configuration that it is built with.
        changes: entries of it that are other, by component.
        reasons: what it was seen by.
    """

    config: str
    changes: Changes = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def is_refiner(unet: UNet) -> bool:
    """Whether a UNet is that of an SDXL refiner, by its shapes."""
    return _BASES.get((unet.context, unet.pooled > 0)) == "sdxl-refiner"


def refuse_other_unets(path: Path, unet: UNet) -> None:
    """Refuse a UNet that takes more than noisy latents, a text and sizes.

    Raises:
        ModelError: names what it is.
    """
    channels, what = unet.channels[0], None
    if channels in _INPUTS:
        what = f"{_INPUTS[channels]}, which takes {channels} channels"
    elif channels != 4:
        what = f"a UNet that takes {channels} channels"
    elif unet.pooled and unet.context == 1024:
        what = "a Stable unCLIP, which takes an image's embedding beside the text"
    if what is not None:
        raise ModelError(f"{path} is {what}: that is not supported; build the base model")


def identify(path: Path, header: Header, unet: UNet, prefix: str, layout: str) -> Identity:
    """Return what a checkpoint is.

    Args:
        path: the file.
        header: its header.
        unet: what the shapes of its UNet say; see `refuse_other_unets`.
        prefix: with which the names of the UNet's tensors begin.
        layout: whose names they are.

    Raises:
        ModelError: a UNet of a size that no packaged configuration has.
    """
    name = _BASES.get((unet.context, unet.pooled > 0))
    if name is not None and unet.guidance:
        name = {"sd15": "lcm-sd15", "sdxl": "lcm-sdxl"}.get(name)
    if name is None:
        raise _odd_size(path, f"it reads text of width {unet.context}")
    expected = of_config(packaged(name).config("unet"))
    assert expected is not None  # a packaged one
    depths = depth_changes(unet, expected)
    if depths is None:
        raise _odd_size(path, f"unlike {name}, {differences(unet, expected)}")
    seen = f"its UNet reads text of width {unet.context}"
    seen += f" and {unet.pooled} values beside it" if unet.pooled else ""
    seen += f", and embeds the guidance scale in {unet.guidance}" if unet.guidance else ""
    if depths:
        relative = _RELATIVES.get((unet.down, unet.up), "with other numbers of layers")
        seen += f", and it has the layers of {relative}"
    found = _sampled(path, header, name, prefix + _TELLING[layout])
    changes = {**found.changes, "unet": depths} if depths else found.changes
    return Identity(found.config, changes, (seen, *found.reasons))


def _sampled(path: Path, header: Header, name: str, telling: str) -> Identity:
    """Say what a UNet predicts, and for which scheduler, as far as anything does."""
    tensors = header.tensors
    if name == "sdxl" and {"edm_mean", "edm_std"} <= tensors.keys():
        return _playground(path, header)
    if "edm_vpred.sigma_max" in tensors:
        raise ModelError(
            f"{path} predicts velocity with EDM's noise (edm_vpred.sigma_max), as CosXL: give its "
            "scheduler in a diffusers folder",
            Argument("config", "FOLDER"),
        )
    velocity: dict[str, Any] = {"prediction_type": "v_prediction"}
    if "v_pred" in tensors:
        if "ztsnr" in tensors:
            velocity |= {"rescale_betas_zero_snr": True}
        return _predicting(name, velocity, "the key v_pred")
    says = header.metadata.get("modelspec.prediction_type", "")
    if says in ("v", "v_prediction"):
        return _predicting(name, velocity, f"modelspec.prediction_type {says}")
    if name != "sd21":
        return Identity(name)
    if says == "epsilon":
        return Identity("sd21-base", {}, ("predicts noise (modelspec.prediction_type epsilon)",))
    values = read_values(path, tensors[telling]) if telling in tensors else None
    if values is None:
        return Identity("sd21", {}, ("predicts velocity, as nothing says otherwise",))
    deviation = float(values.std())
    predicts, config = ("velocity", "sd21") if deviation > _THRESHOLD else ("noise", "sd21-base")
    side = "above" if deviation > _THRESHOLD else "not above"
    return Identity(
        config, {}, (f"predicts {predicts} ({telling} deviates by {deviation:.2g}, {side} "
                     f"{_THRESHOLD}; a configuration overrules it)",),
    )  # fmt: skip


def _predicting(name: str, scheduler: Mapping[str, Any], why: str) -> Identity:
    return Identity(name, {"scheduler": scheduler}, (f"predicts velocity ({why})",))


def _playground(path: Path, header: Header) -> Identity:
    found = {}
    for key, entry in (("latents_mean", "edm_mean"), ("latents_std", "edm_std")):
        values = read_values(path, header.tensors[entry])
        if values is None or values.size != 4:
            raise ModelError(f"{path} has {entry} of no 4 numbers: download the model again")
        found[key] = [float(value) for value in values]
    changes = {"vae": found}
    return Identity(
        "playground-v2.5", changes, ("it has edm_mean and edm_std, as Playground v2.5",)
    )


def _odd_size(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} has a UNet of a size that no packaged configuration has ({what})",
        "give a diffusers folder whose configurations are its own: ",
        Argument("config", "FOLDER"),
    )
