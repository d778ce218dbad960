"""A VAE in place of a model's own: a folder's, or one in a file (no torch).

Of `AutoencoderKL`, and of `AutoencoderTiny`: TAESD, which decodes in a few convolutions. A file
says by its keys and shapes what it is; TAESD of Stable Diffusion and TAESD of SDXL have the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.common.hints import Argument, Hint
from tgate_export.families.checkpoint_parts import Part, find_vae, shapes_of
from tgate_export.families.model_files import check_file, open_header, read_json
from tgate_export.families.repairs import effective_config

if TYPE_CHECKING:
    from tgate_export.families.source import ModelSource

KL = "diffusers.AutoencoderKL"
TINY = "diffusers.AutoencoderTiny"
_CHANNELS = [64, 64, 64, 64]  # of AutoencoderTiny, unless its configuration says otherwise
_ORIGINAL = re.compile(r"\d{1,4}\.(conv\.\d+\.|skip\.)?(weight|bias)")
_MOST_LEVELS = 16
_MOST_TENSORS = 1000  # of a half of TAESD, which has 60
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Vae:
    """A VAE in place of a model's own.

    Attributes:
        path: the file or the folder.
        class_name: "library.Class" that loads it.
        config: its configuration; None where that of the model's own VAE is taken.
        part: where it is in a file; None for a folder.
        encodes: it can encode images.
    """

    path: Path
    class_name: str
    config: Mapping[str, Any] | None = None
    part: Part | None = None
    encodes: bool = True

    def name_of(self, path: Path) -> str | None:
        """Return what one of its files is called in fingerprints; None for another's."""
        if self.part is not None:
            return "vae.safetensors" if path == self.path else None
        return f"other-vae/{path.name}" if path.parent == self.path else None

    @property
    def finding(self) -> Hint:
        """What it is, in a note for people."""
        kind = self.class_name.rpartition(".")[2]
        names = f" (names of {self.part.layout})" if self.part else ""
        without = "" if self.encodes else ", without an encoder"
        return (f"VAE from {self.path.name}: {kind}{names}{without}",)


def open_vae(vae: str) -> Vae:
    """Find out what a VAE is.

    Args:
        vae: a safetensors file, or a folder with `config.json` and weights.

    Raises:
        InvalidRequestError: neither a file nor a folder.
        ModelError: no VAE that can be built.
    """
    path = Path(vae).absolute()
    if path.is_dir():
        return _of_folder(path.resolve())
    if not path.is_file():
        raise InvalidRequestError(f"vae {vae} is neither a file nor a folder", field="vae")
    header = open_header(path)
    shapes = {key: tensor.shape for key, tensor in header.tensors.items()}
    return _tiny(path, shapes) or Vae(path, KL, None, find_vae(path, shapes))


def with_vae(source: ModelSource, vae: Vae) -> ModelSource:
    """Return a model with a VAE in place of its own.

    Raises:
        InvalidRequestError: a model that takes none, or random weights in the place of a file's.
        ModelError: latents of another size.
    """
    if vae.class_name not in source.family.vaes:
        raise InvalidRequestError(
            f"{source.model}: another VAE is for Stable Diffusion and SDXL, and this is "
            f"{source.family.title}",
            "leave ",
            Argument("vae"),
            " out",
            field="vae",
        )
    if source.kind == "random" and vae.part is not None:
        raise InvalidRequestError(
            f"weights random takes a folder's configuration, and vae {vae.path} is a file",
            "leave ",
            Argument("vae"),
            " out",
            field="vae",
        )
    changed = replace(source, vae=vae)
    if vae.config is None and vae.part is not None:
        shapes = {key: tensor.shape for key, tensor in open_header(vae.path).tensors.items()}
        hint: Hint = ("give the folder with its config.json: ", Argument("vae", "FOLDER"))
        check_sizes(vae.path, changed.config("vae"), shapes_of(vae.part, shapes), hint)
    if vae.config is not None and (source.folder("vae") / "config.json").is_file():
        other, own = (
            2 ** (len(of.config("vae").get("block_out_channels", ())) - 1)
            for of in (changed, source)
        )
        if own != other:
            raise ModelError(
                f"{vae.path} is not for this model: a latent is {other} pixels wide, and {own} of "
                "the model's own VAE",
                "choose another ",
                Argument("vae"),
            )
    return changed


def check_sizes(file: Path, config: Mapping[str, Any], shapes: Shapes, hint: Hint) -> None:
    """Compare the sizes of an AutoencoderKL in a file with its configuration.

    Args:
        file: the file.
        config: the configuration.
        shapes: of its tensors.
        hint: what to do where they differ.

    Raises:
        ModelError: they differ.
    """
    names = ("block_out_channels", "latent_channels")
    found = shapes.get("decoder.conv_in.weight", ())[:2]
    expected = (config.get(names[0], [None])[-1], config.get(names[1], 4))
    if tuple(found) != expected:
        raise other_sizes(file, "vae", names, found, expected, hint)


def other_sizes(
    file: Path,
    component: str,
    names: tuple[str, ...],
    found: tuple[int, ...],
    expected: tuple[object, ...],
    hint: Hint,
) -> ModelError:
    """Return the error of a component whose sizes are not those of its configuration."""
    return ModelError(
        f"{file} has a {component} of other sizes than its configuration: {' and '.join(names)} "
        f"are {list(found)}, expected {list(expected)}",
        *hint,
    )


def _of_folder(path: Path) -> Vae:
    file = path / "config.json"
    if not file.exists():
        instead = "give its vae/" if (path / "model_index.json").exists() else "give its file"
        raise ModelError(f"vae {path} has no config.json: {instead}")
    check_file(path, file)
    config = read_json(file)
    for name in ("block_out_channels", "decoder_block_out_channels"):
        channels = config.get(name, [1])
        if not isinstance(channels, list) or not 1 <= len(channels) <= _MOST_LEVELS:
            raise ModelError(f"{file}: {name} is no list of 1 to {_MOST_LEVELS} numbers")
    class_name = f"diffusers.{config.get('_class_name')}"
    if class_name == KL:
        return Vae(path, KL, effective_config("", "vae", KL, config))
    if class_name == TINY:
        return Vae(path, TINY, _tiny_config(config))
    raise ModelError(
        f"{file} describes a {config.get('_class_name')!r:.60}, expected an AutoencoderKL or an "
        "AutoencoderTiny"
    )


def _tiny_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that AutoencoderTiny has of these entries, and what else is read."""
    channels = config.get("decoder_block_out_channels", _CHANNELS)
    usual = {"_class_name": "AutoencoderTiny", "latent_channels": 4, "scaling_factor": 1.0}
    # It overrules what its configuration says of these.
    return {**usual, **config, "block_out_channels": channels, "force_upcast": False}


def _tiny(path: Path, shapes: Shapes) -> Vae | None:
    """Return what of TAESD is in a file; None where there is nothing of it.

    In the names of diffusers, or its author's, who has the encoder in a file of its own.
    """
    if "decoder.layers.0.weight" in shapes:
        part = Part(path, "", "diffusers")
        decoder, encoder = (
            shapes_of(Part(path, f"{name}.layers.", "diffusers"), shapes)
            for name in ("decoder", "encoder")
        )
    elif shapes and all(map(_ORIGINAL.fullmatch, shapes)):
        if "1.weight" not in shapes:
            raise ModelError(
                f"{path} is TAESD's encoder alone: give its decoder, or the folder or file in "
                "diffusers' names, which has both"
            )
        part, encoder = Part(path, "", "taesd"), {}
        # What clamps the latents has the first number there.
        decoder = {one_less(key): shape for key, shape in shapes.items()}
    else:
        return None
    config: dict[str, Any] = {"latent_channels": (*decoder.get("0.weight", ()), 0, 0)[1]}
    for name, layers in (("decoder", decoder), ("encoder", encoder or decoder)):
        if "0.weight" not in layers or len(layers) > _MOST_TENSORS:
            raise ModelError(f"{path} has no {name} of TAESD: download it again")
        channels, blocks = _levels(layers)
        config |= {
            f"{name}_block_out_channels": [channels] * len(blocks),
            f"num_{name}_blocks": list(blocks),
        }
    return Vae(path, TINY, _tiny_config(config), part, encodes=bool(encoder))


def one_less(key: str) -> str:
    """Return a name of a layer in TAESD's own file as diffusers has it in its decoder."""
    number, _, rest = key.partition(".")
    return f"{int(number) - 1}.{rest}"


def _levels(shapes: Shapes) -> tuple[int, tuple[int, ...]]:
    """Return the channels of a half of TAESD, and how many blocks are between convolutions."""
    numbers = {name: set[int]() for name in ("weight", "conv.0.weight")}
    for key in shapes:
        number, _, rest = key.partition(".")
        if rest in numbers and number.isdecimal():
            numbers[rest].add(int(number))
    convolutions, blocks = map(sorted, numbers.values())
    counts = (sum(begin < block < end for block in blocks) for begin, end in pairwise(convolutions))
    return (shapes["0.weight"] or (0,))[0], tuple(counts)
