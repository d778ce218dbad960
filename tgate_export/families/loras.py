"""LoRA files that a model is built with (no torch)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tgate_export.adapters.lora_file import Lora, open_lora
from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.manifest import AppliedLora, File
from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.common.hints import Argument, Hint
from tgate_export.families.single_file import FEW_STEPS
from tgate_export.families.unets import context_width

if TYPE_CHECKING:
    from tgate_export.families.source import ModelSource
    from tgate_export.families.spec import Family

# A LoRA file and what its change of the weights is multiplied by.
GivenLora = tuple[str, float]


def with_loras(source: ModelSource, given: Sequence[GivenLora]) -> ModelSource:
    """Return a model with the weights that LoRA files make of its own.

    Args:
        source: the model.
        given: the files, in the order in which they are applied.

    Raises:
        InvalidRequestError: no such file, the same file twice, a scale that is no finite number, or
            a model that takes none.
        ModelError: a file that cannot be read, or is for another model.
    """
    loras = open_loras(given)
    if loras:
        check_family(source.family, source.model)
        width = context_width(source.config("unet"))
        for lora in loras:
            check_lora(lora, source.family, width)
    return replace(source, loras=loras)


def open_loras(given: Sequence[GivenLora]) -> tuple[Lora, ...]:
    """Read what LoRA files change, in the order in which they are applied.

    Raises:
        InvalidRequestError: no such file, the same file twice, or a scale that is no finite number.
        ModelError: a file that cannot be read.
    """
    loras = tuple(open_lora(file, scale) for file, scale in given)
    seen: set[Path] = set()
    for lora in loras:
        if (real := lora.path.resolve()) in seen:
            raise InvalidRequestError(
                f"lora {lora.path} is given twice: add up its scales", field="loras"
            )
        seen.add(real)
    return loras


def check_family(family: Family, model: str) -> None:
    """Refuse a model that takes no LoRA.

    Raises:
        InvalidRequestError: names the model.
    """
    if not family.loras:
        raise InvalidRequestError(
            f"{model}: LoRA is for Stable Diffusion and SDXL, and this is {family.title}",
            "leave ",
            Argument("loras"),
            " out",
            field="loras",
        )


def check_lora(lora: Lora, family: Family, width: int | None) -> None:
    """Refuse a file for another model, as far as it can be told without the model's layers.

    Args:
        lora: the file.
        family: the model's.
        width: of the text that its UNet reads, where that is known.

    Raises:
        ModelError: says what of it is another model's.
    """
    for component in lora.layers:
        if component not in family.weights:
            raise ModelError(
                f"lora {lora.path} is not for this model: it changes {component}, and "
                f"{family.title} has none"
            )
    found = lora.text_width()
    if None not in (found, width) and found is not None and found[1] != width:
        raise ModelError(
            f"lora {lora.path} is not for this model: {found[0]} reads text of width {found[1]}, "
            f"and the model's has {width}"
        )


def hash_with_loras(before: str, loras: Sequence[Lora], hashes: Mapping[Path, File]) -> str:
    """Return the hash of what has a hash itself, and is then changed by LoRA files.

    One file after another gives what all of them at once do: a bundle that got a LoRA later has the
    hashes of one that was built with it.

    Args:
        before: the hash without them.
        loras: the files.
        hashes: theirs.
    """
    for lora in loras:
        factors = {component: lora.factors(component) for component in sorted(lora.layers)}
        content = [before, hashes[lora.path].sha256, lora.scale, factors]
        before = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return before


def file_hashes(
    loras: Sequence[Lora], hashes: Mapping[Path, File], component: str
) -> list[tuple[str, list[float]]]:
    """Return what a component's weights depend on, beside its own files.

    Args:
        loras: the files.
        hashes: theirs.
        component: its name.
    """
    return [
        (hashes[lora.path].sha256, lora.factors(component))
        for lora in loras
        if component in lora.layers
    ]


def applied(loras: Sequence[Lora], hashes: Mapping[Path, File]) -> tuple[AppliedLora, ...]:
    """Return what the manifest says of LoRA files."""
    return tuple(
        AppliedLora(file=str(lora.path), sha256=hashes[lora.path].sha256, scale=lora.scale)
        for lora in loras
    )


def are_applied(given: Sequence[GivenLora], recorded: Sequence[AppliedLora]) -> bool:
    """Whether LoRA files and scales are those that a bundle was built with, wherever they lie."""
    loras = [open_lora(file, scale) for file, scale in given]
    found = [(hash_file(lora.path).sha256, lora.scale) for lora in loras]
    return found == [(lora.sha256, lora.scale) for lora in recorded]


def notes(loras: Sequence[Lora]) -> list[Hint]:
    """Say what people should know of files that make a model need few steps."""
    return [
        (
            f"{lora.path.name}: its name says {few[0]}. The bundle keeps the model's own sampler, "
            "steps and guidance: generate with those of the file's page, such as ",
            Argument("scheduler", "lcm"),
            ", ",
            Argument("num_inference_steps", 4),
            " and ",
            Argument("guidance_scale", 1),
        )
        for lora in loras
        if (few := FEW_STEPS.search(lora.path.stem))
    ]
