"""What people bring, as small random files, and how diffusers reads each: see compare_files.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.support import checkpoints, embeddings, loras, taesd, tiny

PROMPT = "a red circle"


@dataclass
class Brought:
    """Files of a row: what `build` is given, and how diffusers comes to the same model.

    Attributes:
        model: `build`'s.
        options: of `build`, but for what every row has.
        words: the command's, for people.
        oracle: loads diffusers' pipeline.
        plain: loads it without what is added to the model, where something is.
        prompt: what is drawn.
        of_images: images are compared: latents do not depend on the files.
        fused: LoRA files that the bundle gets after it was built.
    """

    model: Path
    words: str
    oracle: Callable[[], Any]
    plain: Callable[[], Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    prompt: str = PROMPT
    of_images: bool = False
    fused: Sequence[tuple[str, float]] = ()


def _saved(name: str, folder: Path) -> Path:
    """Save a tiny pipeline; return its folder."""
    tiny.save(name, folder / "model")
    return folder / "model"


def _of_folder(model: Path) -> Callable[[], Any]:
    return lambda: diffusers.DiffusionPipeline.from_pretrained(model, safety_checker=None)


def _folder(name: str) -> Callable[[Path], Brought]:
    """A folder in diffusers' layout."""

    def bring(folder: Path) -> Brought:
        model = _saved(name, folder)
        guidance = tiny.PIPELINES[name].guidance
        options = {"guidance": "none"} if guidance == "none" else {}
        words = " --guidance none" if options else ""
        return Brought(model, f"build --model DIR{words}", _of_folder(model), options=options)

    return bring


def _file(
    name: str, layout: str, *, dtype: torch.dtype = torch.float32,
    change: Callable[[dict[str, torch.Tensor]], None] = lambda _tensors: None, vae: bool = False,
) -> Callable[[Path], Brought]:  # fmt: skip
    """A checkpoint in one file, in a layout of `checkpoints.WRITERS`; diffusers reads it, too."""

    def bring(folder: Path) -> Brought:
        model = _saved(name, folder)
        tensors = checkpoints.WRITERS[layout](checkpoints.parts_of(model))
        tensors = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in tensors.items()
        }
        change(tensors)
        file = checkpoints.save(tensors, folder / "file.safetensors")
        options, words = {"config": str(model)}, "build --model FILE --config DIR"
        cls = getattr(diffusers, tiny.PIPELINES[name].make().__class__.__name__)
        parts: dict[str, Any] = {}
        if vae:
            options["vae"] = str(model / "vae" / "diffusion_pytorch_model.safetensors")
            words += " --vae FILE"
            parts["vae"] = diffusers.AutoencoderKL.from_pretrained(model / "vae")

        def oracle() -> Any:
            if layout == "diffusers" or name == "lcm":  # which has no loader of such files
                return _of_folder(model)()
            return cls.from_single_file(
                str(file), config=str(model), local_files_only=True, dtype=torch.float32,
                safety_checker=None, **parts,
            )  # fmt: skip

        return Brought(file, words, oracle, options=options)

    return bring


def _with_averages(tensors: dict[str, torch.Tensor]) -> None:
    """Add the moving averages that trainers keep beside the weights."""
    for key, value in list(tensors.items()):
        if key.startswith("model.diffusion_model."):
            name = key.removeprefix("model.").replace(".", "")
            tensors[f"model_ema.{name}"] = value + 1


def _without_vae(tensors: dict[str, torch.Tensor]) -> None:
    for key in [key for key in tensors if key.startswith("first_stage_model.")]:
        del tensors[key]


Names = Callable[[Any, Any, Any], loras.Tensors]


def _lora(name: str, names: Names, *scales: float, built: bool = True) -> Callable[[Path], Brought]:
    """LoRA files on a folder, as many as there are scales; or on its bundle."""

    def bring(folder: Path) -> Brought:
        model = _saved(name, folder)
        plain = _of_folder(model)
        given = []
        for index, scale in enumerate(scales or (1.0,)):
            pipe = plain()
            tensors = names(pipe, pipe.unet, index)
            file = loras.save(tensors, folder / f"lora{index}.safetensors")
            given.append((str(file), scale))

        def oracle() -> Any:
            pipe = plain()
            for file, scale in given:
                pipe.load_lora_weights(folder, weight_name=Path(file).name, adapter_name="a")
                pipe.fuse_lora(lora_scale=scale)
                pipe.unload_lora_weights()
            return pipe

        files = "".join(f" FILE:{scale:g}" for scale in scales or (1,))
        if not built:
            return Brought(model, f"lora BUNDLE{files}", oracle, plain, fused=given)
        words = "build --model DIR" + files.replace(" ", " --lora ")
        return Brought(model, words, oracle, plain, {"loras": tuple(given)})

    return bring


def _kohya(pipe: Any, unet: Any, seed: int) -> loras.Tensors:
    text = loras.change(pipe.text_encoder, loras.ATTENTION, seed=seed + 1)
    unet_change = loras.change(unet, loras.ATTENTION, seed=seed)
    return loras.kohya("lora_unet_", unet_change, 2.0) | loras.kohya("lora_te_", text, 2.0)


def _sgm(pipe: Any, unet: Any, seed: int) -> loras.Tensors:
    changes = loras.change(unet, loras.ATTENTION, seed=seed)
    texts = {
        f"lora_te{number}_": loras.change(getattr(pipe, part), loras.ATTENTION, seed=seed + number)
        for number, part in ((1, "text_encoder"), (2, "text_encoder_2"))
    }
    named = [loras.kohya(prefix, change, 2.0) for prefix, change in texts.items()]
    return loras.sgm(changes, unet, 2.0) | named[0] | named[1]


def _peft(pipe: Any, unet: Any, seed: int) -> loras.Tensors:
    text = loras.change(pipe.text_encoder, loras.ATTENTION, seed=seed + 1)
    changes = loras.change(unet, loras.ATTENTION, seed=seed)
    return loras.peft("unet.", changes) | loras.peft("text_encoder.", text)


def _old(_pipe: Any, unet: Any, seed: int) -> loras.Tensors:
    return loras.old_diffusers("unet.", loras.change(unet, loras.ATTENTION, seed=seed))


def _locon(_pipe: Any, unet: Any, seed: int) -> loras.Tensors:
    return loras.kohya("lora_unet_", loras.change(unet, loras.CONVOLUTIONS, seed=seed), 4.0)


def _embedding(
    name: str, tensors: Mapping[str, torch.Tensor], token: str, *, named: bool = True
) -> Callable[[Path], Brought]:
    """A textual inversion on a folder; its token is in the file or given."""

    def bring(folder: Path) -> Brought:
        model = _saved(name, folder)
        file = checkpoints.save(tensors, folder / "file.safetensors")
        plain = _of_folder(model)

        def oracle() -> Any:
            pipe = plain()
            if "clip_l" in tensors:  # which diffusers leaves to its callers
                for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
                    pipe.load_textual_inversion(
                        tensors[key], token=token, tokenizer=getattr(pipe, f"tokenizer{suffix}"),
                        text_encoder=getattr(pipe, f"text_encoder{suffix}"),
                    )  # fmt: skip
            else:
                pipe.load_textual_inversion(
                    folder, weight_name=file.name, token=None if named else token
                )
            return pipe

        given = (str(file), None if named else token)
        words = "build --model DIR --embedding FILE" + ("" if named else ":TOKEN")
        return Brought(
            model, words, oracle, plain, {"embeddings": (given,)}, f"a {token} beside a circle"
        )

    return bring


def _tiny_vae(*, single: bool) -> Callable[[Path], Brought]:
    """TAESD on a folder: a folder of its own, or its author's file of the decoder."""

    def bring(folder: Path) -> Brought:
        model = _saved("sd15", folder)
        taesd.save(folder / "taesd")
        given = folder / "taesd"
        if single:
            tensors = taesd.authors_decoder(folder / "taesd")
            given = checkpoints.save(tensors, folder / "taesd_decoder.safetensors")
        plain = _of_folder(model)

        def oracle() -> Any:
            pipe = plain()
            pipe.vae = diffusers.AutoencoderTiny.from_pretrained(folder / "taesd")
            return pipe

        words = f"build --model DIR --vae {'FILE' if single else 'DIR'}"
        return Brought(model, words, oracle, plain, {"vae": str(given)}, of_images=True)

    return bring


_vectors = embeddings.vectors

KINDS: dict[str, Callable[[Path], Brought]] = {
    "folder: Stable Diffusion 1.x": _folder("sd15"),
    "folder: Stable Diffusion 2.x, v prediction": _folder("sd21"),
    "folder: SDXL": _folder("sdxl"),
    "folder: LCM": _folder("lcm"),
    "folder: turbo": _folder("turbo"),
    "folder: PixArt-alpha": _folder("pixart-alpha"),
    "folder: PixArt-Sigma": _folder("pixart-sigma"),
    "one file: Stable Diffusion 1.x, LDM": _file("sd15", "sd1"),
    "one file: in fp16": _file("sd15", "sd1", dtype=torch.float16),
    "one file: with moving averages": _file("sd15", "sd1", change=_with_averages),
    "one file: without VAE": _file("sd15", "sd1", change=_without_vae, vae=True),
    "one file: Stable Diffusion 2.x, OpenCLIP": _file("sd21", "sd2"),
    "one file: SDXL, SGM": _file("sdxl", "sdxl"),
    "one file: SDXL in fp16": _file("sdxl", "sdxl", dtype=torch.float16),
    "one file: LCM, LDM": _file("lcm", "sd1"),
    "one file: diffusers' names": _file("sd15", "diffusers"),
    "LoRA: kohya, text encoder too": _lora("sd15", _kohya),
    "LoRA: two of them": _lora("sd15", _kohya, 0.8, -0.5),
    "LoRA: SDXL, SGM's names, both text encoders": _lora("sdxl", _sgm),
    "LoRA: PEFT": _lora("sd15", _peft),
    "LoRA: diffusers before PEFT": _lora("sd15", _old),
    "LoRA: convolutions (LoCon)": _lora("sd15", _locon),
    "LoRA on a bundle, nothing exported": _lora("sd15", _kohya, 0.8, built=False),
    "LoRA on a bundle of SDXL": _lora("sdxl", _sgm, built=False),
    "textual inversion: three vectors": _embedding("sd15", {"<cat>": _vectors(3, 32, 1)}, "<cat>"),
    "textual inversion: A1111": _embedding(
        "sd15", {"emb_params": _vectors(1, 32, 2)}, "fox", named=False
    ),
    "textual inversion: SDXL": _embedding(
        "sdxl",
        {"clip_l": _vectors(2, 32, 1), "clip_g": _vectors(2, 48, 2)},
        "<cat>",
        named=False,
    ),
    "VAE: TAESD, a folder": _tiny_vae(single=False),
    "VAE: TAESD, its author's decoder": _tiny_vae(single=True),
}
