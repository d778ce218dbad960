"""A1111's fields: from a body of `txt2img` or `img2img` to what the batcher is asked for."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tgate_export.bundle.sampler_names import a1111_name
from tgate_export.common.errors import InvalidRequestError
from tgate_export.parameters import short_name
from tgate_export.runtime.images import decode_image
from tgate_export.runtime.prompts import SYNTAX
from tgate_export.runtime.sampler_choice import most_steps
from tgate_export.serve import fields
from tgate_export.serve.a1111_hires import second_pass
from tgate_export.serve.a1111_samplers import find_scheduler
from tgate_export.serve.fields import Fields
from tgate_export.serve.generation import Wanted
from tgate_export.serve.options import ServeOptions
from tgate_export.serve.pool import Model, ModelPool

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["txt2img", "img2img"]

# What would change the picture in A1111 and cannot here, with the values that change nothing.
_INERT: Mapping[str, tuple[Any, ...]] = {
    "firstphase_width": (0,), "firstphase_height": (0,),
    "restore_faces": (False,), "tiling": (False,), "styles": ([],), "infotext": ("",),
    "subseed_strength": (0,), "seed_resize_from_h": (0, -1), "seed_resize_from_w": (0, -1),
    "mask": ("",), "latent_mask": ("",), "initial_noise_multiplier": (1,),
    "refiner_checkpoint": ("", "None", "none"), "script_name": ("", "None"),
    "s_churn": (0,), "s_min_uncond": (0,),
}  # fmt: skip
# Its settings that would; `GET /sdapi/v1/options` shows the first value of each.
INERT_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "sd_vae": ("Automatic", "None", ""), "sd_hypernetwork": ("None", ""),
    "face_restoration": (False,), "tiling": (False,), "token_merging_ratio": (0,),
    "eta_noise_seed_delta": (0,), "eta_ancestral": (1,), "s_churn": (0,), "s_min_uncond": (0,),
    "img2img_fix_steps": (False,), "img2img_color_correction": (False,),
    "img2img_extra_noise": (0,), "initial_noise_multiplier": (1,),
}  # fmt: skip
# Amounts of noise that a sampler may be asked for; A1111's others read no `eta`. DDIM has 0, and 1
# is what webuiapi sends unasked.
_ETA: Mapping[str, tuple[float, ...]] = {"euler-a": (1,), "ddim": (0, 1)}
# A1111's fields that a parameter stands behind.
_RENAMED = {"cfg_scale": "guidance_scale", "denoising_strength": "strength"}
_EXTRA_NETWORK = re.compile(r"<(lora|lyco|hypernet):", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """What clients have set for requests that do not say it themselves.

    Attributes:
        model: its name; None for the first.
        clip_skip: layers that are skipped; None for the bundle's default.
    """

    model: str | None = None
    clip_skip: int | None = None

    def changed(self, found: Mapping[str, Any], pool: ModelPool) -> Settings:
        """Return them with A1111's settings; those that have no effect here are dropped.

        Raises:
            InvalidRequestError: one would change pictures and cannot here, or is of another type.
            HttpError: there is no model of that name.
        """
        taken = Fields(found)
        taken.refuse_unless(INERT_SETTINGS)
        changed = self
        if (name := taken.text("sd_model_checkpoint")) is not None:
            changed = replace(changed, model=pool.find(name).name)
        layers = taken.take("CLIP_stop_at_last_layers", int)
        if layers is not None:
            if layers < 1:
                raise InvalidRequestError(
                    f"CLIP_stop_at_last_layers must be at least 1, got {layers}",
                    field="CLIP_stop_at_last_layers",
                )
            changed = replace(changed, clip_skip=layers - 1)
        return changed


@dataclass(frozen=True)
class Call:
    """A parsed body.

    Attributes:
        wanted: what to make; its seed, width and height are decided.
        kind: of the call.
        images: how many are made.
        batch_size: A1111's, that many of them; here all run together.
        send_images: whether they are sent.
        fields: the body, without its pictures unless it asks for them.
    """

    wanted: Wanted
    kind: Kind
    images: int
    batch_size: int
    send_images: bool
    fields: Mapping[str, Any]


def parse(
    kind: Kind, body: bytes, pool: ModelPool, options: ServeOptions, settings: Settings
) -> Call:
    """Read a body.

    Args:
        kind: of the call.
        body: JSON.
        pool: that the model is found in.
        options: its `max_images` is the most of one request.
        settings: for what the body does not say.

    Raises:
        InvalidRequestError: names the field.
        HttpError: there is no model of that name.
    """
    found = fields.parse_json(body)
    taken = Fields(found)
    taken.refuse_unless(_INERT)
    _refuse_scripts(taken.take("alwayson_scripts", dict, {}))
    settings = settings.changed(taken.take("override_settings", dict, {}), pool)
    model = pool.find(settings.model)
    batch_size, images = _count(taken, options.max_images)
    scheduler = _scheduler(taken, model)
    width, height = taken.take("width", int), taken.take("height", int)
    size = model.manifest.size
    # Of `txt2img` it is the second pass's.
    strength = taken.take("denoising_strength", float) if kind == "txt2img" else None
    given = _given(taken, model)
    if kind == "txt2img" and taken.take("enable_hr", bool, False):
        defaults = model.manifest.defaults
        given |= second_pass(
            taken, strength, (width or size.width.opt, height or size.height.opt), size.multiple,
            given.get("num_inference_steps") or defaults.num_inference_steps,
            most_steps(model.manifest, scheduler or defaults.scheduler),
        )  # fmt: skip
    if SYNTAX in model.manifest.parameters:
        given.setdefault(SYNTAX, "a1111")
    if kind == "img2img":
        given["image"] = _image(taken, model, width, height)
    seed = taken.take("seed", int, -1)
    usual = given["image"].size if "image" in given else (size.width.opt, size.height.opt)
    arguments = {
        "prompt": _prompt(taken),
        "negative_prompt": taken.text("negative_prompt") or None,
        "seed": secrets.randbits(32) if seed == -1 else seed,
        "num_images_per_prompt": images,
        "width": usual[0] if width is None else width,
        "height": usual[1] if height is None else height,
        "scheduler": scheduler,
        "clip_skip": settings.clip_skip,
        **given,
    }
    shown = dict(found)
    if not taken.take("include_init_images", bool, False):
        shown |= dict.fromkeys(found.keys() & {"init_images", *_pictures(model)})
    send = taken.take("send_images", bool, True)
    return Call(Wanted(model, arguments), kind, images, batch_size, send, shown)


def _refuse_scripts(scripts: Mapping[str, Any]) -> None:
    """Refuse scripts whose arguments say that they act."""
    for name, script in scripts.items():
        found = script.get("args") if isinstance(script, dict) else script
        if _acts(found if isinstance(found, list) else [found]):
            raise InvalidRequestError(
                f"alwayson_scripts: {name!r:.60} cannot be used here: leave it out, or switch it "
                "off",
                field="alwayson_scripts",
            )


def _acts(arguments: list[Any]) -> bool:
    """Whether a script's arguments switch it on: by a switch among them, or in each unit."""
    for each in arguments:
        if isinstance(each, bool):
            return each
    return any(
        each.get("enabled", each.get("enable", True)) if isinstance(each, dict) else bool(each)
        for each in arguments
    )


def _count(taken: Fields, most: int) -> tuple[int, int]:
    """Return the batch size, and how many images there are in all."""
    batch_size, batches = taken.take("batch_size", int, 1), taken.take("n_iter", int, 1)
    for name, value in (("batch_size", batch_size), ("n_iter", batches)):
        if value < 1:
            raise InvalidRequestError(f"{name} must be at least 1, got {value}", field=name)
    if batch_size * batches > most:
        raise InvalidRequestError(
            f"batch_size * n_iter must be at most {most}, got {batch_size} * {batches}",
            field="batch_size",
        )
    return batch_size, batch_size * batches


def _scheduler(taken: Fields, model: Model) -> str | None:
    """Return the bundle's name of the sampler that is asked for."""
    names = (taken.text("sampler_name"), taken.text("sampler_index"))  # the second is the old name
    scheduler = find_scheduler(
        model.manifest, names[0] or names[1] or "", taken.text("scheduler", "")
    )
    used = scheduler or model.manifest.defaults.scheduler
    eta = taken.take("eta", float)
    if eta is not None and used in _ETA and eta not in _ETA[used]:
        raise InvalidRequestError(
            f"eta {eta:g} cannot be used with {a1111_name(used)[0]}: leave it out", field="eta"
        )
    return scheduler


def _given(taken: Fields, model: Model) -> dict[str, Any]:
    """Return the parameters that are given, by A1111's names or the bundle's."""
    renamed = {ours: taken.take(name, float) for name, ours in _RENAMED.items()}
    found = taken.parameters(model.manifest)
    for name, ours in _RENAMED.items():
        if renamed[ours] is not None and ours in found:
            raise InvalidRequestError(
                f"{name} and {short_name(ours)} are one parameter: give one", field=name
            )
    return found | {ours: value for ours, value in renamed.items() if value is not None}


def _prompt(taken: Fields) -> str:
    prompt: str = taken.text("prompt", "")
    if match := _EXTRA_NETWORK.search(prompt):
        raise InvalidRequestError(
            f"prompt: {match[0]}...> cannot be used here: leave it out", field="prompt"
        )
    return prompt


def _image(taken: Fields, model: Model, width: int | None, height: int | None) -> Image.Image:
    """Return the picture that a run begins with, in the run's size."""
    found = taken.take("init_images", list, [])
    if len(found) != 1 or not isinstance(found[0], str):
        raise InvalidRequestError(
            f"init_images must be a list of one picture in base64, got {len(found)}: send a "
            "request for each",
            field="init_images",
        )
    mode = taken.take("resize_mode", int, 0)
    size = model.manifest.size
    for name, value, allowed in (("width", width, size.width), ("height", height, size.height)):
        if value is not None and value not in allowed:  # before anything is made as large as that
            raise InvalidRequestError(
                f"{name} {value} does not fit: this bundle was built for {name} {allowed}",
                field=name,
            )
    image = decode_image(fields.decode_base64("init_images", found[0]), "init_images")
    wanted = (width or image.width, height or image.height)
    if image.size == wanted:
        return image
    from PIL import Image, ImageOps

    if mode == 0:
        return image.resize(wanted, Image.Resampling.LANCZOS)
    if mode == 1:
        return ImageOps.fit(image, wanted, Image.Resampling.LANCZOS)
    raise InvalidRequestError(
        f"resize_mode must be 0 (resize) or 1 (crop and resize), got {mode}", field="resize_mode"
    )


def _pictures(model: Model) -> list[str]:
    return [name for name, entry in model.manifest.parameters.items() if entry.type == "image"]
