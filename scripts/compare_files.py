"""Compare final latents of every kind of file that people bring with diffusers' own of that file.

Small random checkpoints, LoRA files and embeddings in the layouts of those who publish them
(tests/support), built and run without a gate. diffusers reads the same files itself
(`from_single_file`, `load_lora_weights` and `fuse_lora`, `load_textual_inversion`). Writes
docs/results/files.json and, beside it, the Markdown table that it prints.

Usage: python scripts/compare_files.py [--only TEXT] [--out docs/results/files.json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import diffusers

from tests.support import checkpoints, loras, tiny
from tgate_export import TGatePipeline
from tgate_export.build.build import build_bundle

STEPS, GUIDANCE, PROMPT, NEGATIVE = 8, 6.0, "a red circle", "a green square"
BOUND = 1e-3


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
    """

    model: Path
    words: str
    oracle: Callable[[], Any]
    plain: Callable[[], Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    prompt: str = PROMPT
    of_images: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose title has this text")
    parser.add_argument("--out", type=Path, default=Path("docs/results/files.json"))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for title, bring in KINDS.items():
            if arguments.only in title:
                rows.append(compare(title, bring, Path(folder) / str(len(rows))))
                print(rows[-1], file=sys.stderr)
    packages = ("diffusers", "peft", "torch", "onnxruntime")
    report = {
        "date": date.today().isoformat(),
        "versions": {name: metadata.version(name) for name in packages},
        "steps": STEPS,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = "".join(f"{line}\n" for line in markdown(report))
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    if worst := [row["title"] for row in rows if not row["relative_error"] < BOUND]:
        raise SystemExit(f"not below {BOUND:g}: {', '.join(worst)}")


def markdown(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a page: what was compared, and a table of it."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield "# What people bring, beside diffusers"
    yield ""
    yield (
        f"Final latents (of other VAEs: images) of small random pipelines of the true"
        f" architectures, {report['steps']} steps without a gate in fp32: the largest error,"
        " relative to the largest value. *Apart* is how far diffusers' result without the files is"
        " from that with them, of what is added to a model: the error of a row that ignored them."
        f" Seconds are of the build, from nothing, with one sampler. {versions}, {report['date']}."
    )
    yield ""
    yield "| what | built with | error | apart | seconds |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for row in report["rows"]:
        apart = "" if row["apart"] is None else f"{row['apart']:.1e}"
        yield (
            f"| {row['title']} | `{row['command']}` | {row['relative_error']:.1e} | {apart} | "
            f"{row['seconds']:.0f} |"
        )


def compare(title: str, bring: Callable[[Path], Brought], folder: Path) -> dict[str, Any]:
    """Make a row's files, build and run them, and let diffusers do the same."""
    folder.mkdir()
    brought = bring(folder)
    os.environ["TGATE_EXPORT_CACHE"] = str(folder / "cache")
    started = time.perf_counter()
    with tiny.only_samplers("euler"):
        built = build_bundle(
            str(brought.model), out=folder / "bundle", size=tiny.SIZE, batch=tiny.FIXED,
            **brought.options,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    pipeline = TGatePipeline.from_bundle(built.path)
    space = pipeline.manifest.latents
    shape = (2, space.channels, 16 // space.downscale, 16 // space.downscale)
    latents = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
    kind = "np" if brought.of_images else "latent"
    run: dict[str, Any] = {"num_inference_steps": STEPS}
    guided = pipeline.manifest.guidance == "classifier-free"
    if guided:
        run |= {"guidance_scale": GUIDANCE, "negative_prompt": NEGATIVE}
    ours = pipeline(
        [brought.prompt] * 2, latents=latents, scheduler="euler", gate_step=STEPS, output_type=kind,
        **run,
    )  # fmt: skip
    found = np.asarray(ours.images)[:1]

    def theirs(pipe: Any) -> np.ndarray:
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        call: dict[str, Any] = {"guidance_scale": 1.0}
        if pipeline.manifest.guidance == "embedded":
            call["guidance_scale"] = pipeline.manifest.parameters["guidance_scale"].default
        if type(pipe).__name__.startswith("PixArt"):  # which would choose a size of a list
            call["use_resolution_binning"] = False
        images = pipe(
            brought.prompt, latents=torch.from_numpy(latents[:1]), output_type=kind, height=16,
            width=16, **(call | run),
        ).images  # fmt: skip
        return np.asarray(images)

    expected = theirs(brought.oracle())
    return {
        "title": title,
        "command": f"build {brought.words}",
        "relative_error": _relative(found, expected),
        "apart": _relative(theirs(brought.plain()), expected) if brought.plain else None,
        "seconds": round(seconds, 1),
    }


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


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
        return Brought(model, f"--model DIR{words}", _of_folder(model), options=options)

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
        options, words = {"config": str(model)}, "--model FILE --config DIR"
        cls = getattr(diffusers, tiny.PIPELINES[name].make().__class__.__name__)
        parts: dict[str, Any] = {}
        if vae:
            options["vae"] = str(model / "vae" / "diffusion_pytorch_model.safetensors")
            words += " --vae FILE"
            parts["vae"] = diffusers.AutoencoderKL.from_pretrained(model / "vae")

        def oracle() -> Any:
            if layout == "diffusers":  # which has no loader of such files
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


def _lora(name: str, names: Names, *scales: float) -> Callable[[Path], Brought]:
    """LoRA files on a folder, as many as there are scales."""

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

        words = "--model DIR" + "".join(f" --lora FILE:{scale:g}" for scale in scales or (1,))
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
}


if __name__ == "__main__":
    main()
