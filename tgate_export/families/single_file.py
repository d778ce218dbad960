"""A checkpoint in one file as a source of weights: what it is, and why (no torch).

Keys say which components there are, and shapes which model it is; what neither tells, such as what
the UNet predicts, is told by marks that trainers leave. A configuration that is named overrules all
of that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgate_export.common.errors import ModelError
from tgate_export.common.hints import Argument, Hint
from tgate_export.common.safetensors_header import Header
from tgate_export.families import checkpoint_unet
from tgate_export.families.checkpoint_configs import (
    Changes,
    Configuration,
    given,
    packaged,
    title_of,
)
from tgate_export.families.checkpoint_kinds import (
    Identity,
    identify,
    is_refiner,
    refuse_other_unets,
)
from tgate_export.families.checkpoint_parts import Part, find_parts, shapes_of
from tgate_export.families.model_files import open_header
from tgate_export.families.vae import check_sizes, other_sizes

CLIP = Path(__file__).resolve().parent / "clip"
_CLIP_TOKENS = 49408
_EMBEDDINGS = {
    "clip": "embeddings.token_embedding.weight",
    "diffusers": "embeddings.token_embedding.weight",
    "open-clip": "token_embedding.weight",
}
FEW_STEPS = re.compile(r"turbo|lightning|lcm|hyper|dmd", re.IGNORECASE)


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint, and what its components are built with.

    Attributes:
        path: the file.
        config: the configurations that a user named: a name, or a folder's whole path.
        parts: where the weights of components are; others' are in the configurations' folder.
        configuration: what components are built with.
        changes: entries of configurations that are other than in their files, by component.
        findings: what it is and why, in notes for people.
    """

    path: Path
    config: str | None
    parts: Mapping[str, Part]
    configuration: Configuration
    changes: Changes
    findings: tuple[Hint, ...]

    def changed(self, component: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a component's configuration with what is other in this file."""
        return {**config, **self.changes.get(component, {})}

    def tokenizer(self, component: str) -> Path | None:
        """Return the packaged folder of a tokenizer; None where the configurations have one.

        OpenCLIP pads with token 0, and CLIP with the end of the text.
        """
        inside = (self.configuration.directory / component).is_dir()
        if inside or not component.startswith("tokenizer"):
            return None
        encoder = component.replace("tokenizer", "text_encoder")
        part = self.parts.get(encoder)
        if part is not None and part.layout != "diffusers":
            zero = part.layout == "open-clip"
        else:
            config = self.configuration.config(encoder, "transformers.CLIPTextModel")
            zero = config.get("hidden_act") == "gelu"
        return CLIP / ("padding-0" if zero else "padding-end")

    def name_of(self, path: Path) -> str | None:
        """Return what a file is called in fingerprints; None for one of the configurations."""
        if path == self.path:
            return "checkpoint.safetensors"
        return f"clip/{path.relative_to(CLIP).as_posix()}" if path.is_relative_to(CLIP) else None


def clip_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a packaged tokenizer."""
    return folder / "tokenizer_config.json", CLIP / "merges.txt", CLIP / "vocab.json"


def open_single_file(path: Path, config: str | None = None) -> SingleFile:
    """Find out what a checkpoint is.

    Args:
        path: the file.
        config: a diffusers folder or a name, whose configurations are taken as they are.

    Raises:
        InvalidRequestError: `config` is none.
        ModelError: no checkpoint of a family that can be built.
    """
    header = open_header(path)
    parts = find_parts(path, header.tensors.keys())
    unet = checkpoint_unet.of_shapes(_shapes(parts["unet"], header), parts["unet"].layout)
    if unet is None:
        raise ModelError(
            f"{path} has a UNet whose blocks are not those of Stable Diffusion or SDXL "
            f"({parts['unet'].prefix}*), or not all of them"
        )
    refuse_other_unets(path, unet)
    if config is None:
        found = identify(path, header, unet, parts["unet"].prefix, parts["unet"].layout)
        configuration = packaged(found.config)
    else:
        configuration = given(config)
        found = Identity(config)
        expected = checkpoint_unet.of_config(configuration.config("unet"))
        if expected is None or expected != unet:
            why = "" if expected is None else f": {checkpoint_unet.differences(unet, expected)}"
            raise ModelError(
                f"{path} has another UNet than unet/config.json of {config} describes{why}",
                "choose another ",
                Argument("config"),
            )
    if is_refiner(unet) and "text_encoder" in parts:
        # A refiner has the second of SDXL's text encoders alone, which is the first of its file.
        parts = {**parts, "text_encoder_2": parts["text_encoder"]}
        del parts["text_encoder"]
    changes = _merged(configuration.changes, found.changes)
    single = SingleFile(
        path,
        config if configuration.name else str(configuration.directory) if config else None,
        parts,
        configuration,
        changes,
        _findings(path, found, configuration, parts, header, distilled=unet.guidance > 0),
    )
    for component, part in parts.items():
        _check_sizes(single, component, _shapes(part, header))
    return single


def _shapes(part: Part, header: Header) -> dict[str, tuple[int, ...]]:
    return shapes_of(part, {key: tensor.shape for key, tensor in header.tensors.items()})


def _merged(first: Changes, second: Changes) -> dict[str, dict[str, Any]]:
    return {
        component: {**first.get(component, {}), **second.get(component, {})}
        for component in (*first, *second)
    }


def _check_sizes(single: SingleFile, component: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the size of a VAE or a text encoder with its configuration."""
    if component == "unet":
        return
    # A text encoder's may be part of a whole CLIP's.
    class_name = None if component == "vae" else "transformers.CLIPTextModel"
    config = single.changed(component, single.configuration.config(component, class_name))
    file = single.parts[component].file
    hint: Hint = (
        "give a diffusers folder whose configurations are its own: ",
        Argument("config", "FOLDER"),
    )
    if component == "vae":
        check_sizes(file, config, shapes, hint)
        return
    key = _EMBEDDINGS[single.parts[component].layout]
    weight = shapes.get(key) or shapes.get(f"text_model.{key}") or ()
    expected = (config.get("vocab_size", _CLIP_TOKENS), config.get("hidden_size"))
    if tuple(weight) != expected:
        raise other_sizes(file, component, ("vocab_size", "hidden_size"), weight, expected, hint)


def check_complete(single: SingleFile, weights: Mapping[str, str]) -> None:
    """Check that every component has weights, and every text encoder a vocabulary.

    Args:
        single: the file.
        weights: component -> its class.

    Raises:
        ModelError: names what is missing, and what brings it.
    """
    for component in weights:
        if component.startswith("text_encoder"):
            _check_vocabulary(single, component)
        if component in single.parts or single.configuration.name is None:
            continue  # a folder says itself what it lacks
        if component == "vae":
            raise ModelError(f"{single.path} has no VAE", "give one with ", Argument("vae", "FILE"))
        raise ModelError(
            f"{single.path} has no {component}",
            "give a diffusers folder of its kind, which has one, with ",
            Argument("config", "FOLDER"),
        )


def _check_vocabulary(single: SingleFile, encoder: str) -> None:
    if single.tokenizer(encoder.replace("text_encoder", "tokenizer")) is None:
        return
    config = single.configuration.config(encoder, "transformers.CLIPTextModel")
    if (tokens := config.get("vocab_size", _CLIP_TOKENS)) != _CLIP_TOKENS:
        raise ModelError(
            f"{single.path}: its {encoder} knows {tokens} tokens, and CLIP's vocabulary has "
            f"{_CLIP_TOKENS}",
            "give a diffusers folder with its tokenizer: ",
            Argument("config", "FOLDER"),
        )


def _findings(
    path: Path,
    found: Identity,
    configuration: Configuration,
    parts: Mapping[str, Part],
    header: Header,
    *,
    distilled: bool,
) -> tuple[Hint, ...]:
    """Say what a checkpoint is, why, and what of it is read."""
    if found.reasons:
        what = f"is {title_of(found.config)}: {'; '.join(found.reasons)}"
    else:
        what = f"is built with the configurations of {found.config}"
    notes: list[Hint] = [(f"{path.name} {what}",)]
    for file in dict.fromkeys(part.file for part in parts.values()):
        here = {component: part for component, part in parts.items() if part.file == file}
        layouts = ", ".join(sorted({part.layout for part in here.values()}))
        notes.append((f"weights from {file.name}: {', '.join(here)} (names of {layouts})",))
    if any(key.startswith("model_ema.diffusion_model") for key in header.tensors):
        notes.append(("it has averaged weights (EMA) beside the ones that are built",))
    called = f"{path.stem} {header.metadata.get('modelspec.title', '')}"
    guided = configuration.guidance == "classifier-free" and not distilled
    if guided and (few := FEW_STEPS.search(called)):
        notes.append(
            (
                f"its name says {few[0]}: if it was distilled to need no guidance, build with ",
                Argument("guidance", "none"),
                " and generate with its ",
                Argument("num_inference_steps"),
            )
        )
    return tuple(notes)
