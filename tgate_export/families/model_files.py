"""The files of a model folder: which of them are read, and that they are whole.

A folder is somebody else's work: nothing outside it is read because a file in it says so, and no
file but JSON, vocabularies and safetensors is read at all.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgate_export.common.errors import ModelError
from tgate_export.common.safetensors_header import Header, read_header

# In the order of preference: what has most digits first, and what people mean when both are there.
VARIANTS = (None, "fp32", "bf16", "fp16")
SUFFIX = ".safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_FOREIGN = {
    ".onnx": "ONNX", ".xml": "OpenVINO", ".msgpack": "Flax", ".h5": "TensorFlow", ".gguf": "GGUF",
    ".engine": "TensorRT", ".plan": "TensorRT", ".mlmodelc": "Core ML", ".mlpackage": "Core ML",
}  # fmt: skip
_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_LFS = b"version https://git-lfs.github.com/spec/"
_MAX_JSON = 64 << 20
# Dtypes of plain weights, and of the counters and positions beside them.
_PLAIN_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"}
_ADAPTER = re.compile(r"lora_|\.lora\.|_lora\.|\.base_layer\.|lokr_|hada_w", re.IGNORECASE)
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a component that are loaded, hashed and fetched: no other ones are.

    Attributes:
        variant: "fp16" and the like; None for files without one in their names.
        files: plain names inside the component's folder, sorted.
        index: the JSON file that says which shard holds which tensor; None for a single file.
        shards: tensor -> file, of `index`.
    """

    variant: str | None
    files: tuple[str, ...]
    index: str | None = None
    shards: Mapping[str, str] | None = None


def weights_name(class_name: str, variant: str | None = None) -> str:
    """Return what the weights of a class are called when they are one file.

    Args:
        class_name: "library.Class".
        variant: "fp16" and the like.
    """
    stem = _STEMS[class_name.partition(".")[0]]
    return f"{stem}.{variant}{SUFFIX}" if variant else f"{stem}{SUFFIX}"


def choose_weights(folder: Path, names: Collection[str], class_name: str) -> WeightFiles:
    """Choose the weights of a component: one file or shards, of one variant.

    Args:
        folder: the component's; the indices of shards are read from it.
        names: what lies in the folder, here or on the hub.
        class_name: "library.Class" of the component.

    Raises:
        ModelError: none are there, only pickles, or shards that are missing or elsewhere.
    """
    stem = weights_name(class_name).removesuffix(SUFFIX)
    for variant in VARIANTS:
        whole = weights_name(class_name, variant)
        dotted = f".{variant}" if variant else ""
        # The second is how diffusers once wrote it.
        indices = (f"{stem}{SUFFIX}.index{dotted}.json", f"{stem}{SUFFIX}{dotted}.index.json")
        # Where both are there, diffusers reads the shards and transformers the whole file.
        order = (*indices, whole) if class_name.startswith("diffusers.") else (whole, *indices)
        name = next((name for name in order if name in names), None)
        if name is not None:
            sharded = name.endswith(".json")
            return (_sharded if sharded else _whole)(folder, names, name, variant)
    raise _no_weights(folder, names, stem)


def _whole(_folder: Path, _names: Collection[str], name: str, variant: str | None) -> WeightFiles:
    return WeightFiles(variant, (name,))


def _sharded(folder: Path, names: Collection[str], index: str, variant: str | None) -> WeightFiles:
    content = read_json(folder / index).get("weight_map")
    if not isinstance(content, dict) or not content:
        raise ModelError(f"{folder / index} has no weight_map: download the model again")
    for shard in content.values():
        if not isinstance(shard, str) or not shard.endswith(SUFFIX) or not _plain(shard):
            raise ModelError(
                f"{folder / index} names {shard!r}: shards are {SUFFIX} files beside their index, "
                "and no others are read"
            )
    files = tuple(sorted(set(content.values())))
    for shard in files:
        if shard not in names:
            raise ModelError(f"{folder / shard} is missing: download the model again")
    return WeightFiles(variant, files, index, content)


def _plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set('/\\:\0*?"<>|')


def _no_weights(folder: Path, names: Collection[str], stem: str) -> ModelError:
    of_variant = re.compile(rf"{re.escape(stem)}\.([^.]+){re.escape(SUFFIX)}")
    variants = sorted({found[1] for name in names if (found := of_variant.fullmatch(name))})
    if variants:
        return ModelError(
            f"{folder} has weights of the variant {' and '.join(variants)} only, which could be of "
            "any kind: load the one you mean with from_pretrained(..., variant=...) and save it "
            "with pipeline.save_pretrained(FOLDER)"
        )
    pickled = sorted(name for name in names if name.endswith(PICKLES) and "openvino" not in name)
    if pickled:
        return ModelError(
            f"{folder} has only pickled weights ({pickled[0]}), which are never loaded: "
            "convert them with pipeline.save_pretrained(FOLDER, safe_serialization=True)"
        )
    if exported := foreign_format(names):
        return ModelError(
            f"{folder} has weights for {exported} only: build from the PyTorch model that they "
            "were made from, in safetensors"
        )
    others = sorted(name for name in names if name.endswith(SUFFIX))
    if others:
        return ModelError(
            f"cannot load {folder}: it has {others[0]} and no {stem}{SUFFIX}, which is what the "
            "libraries read: rename it, or save the pipeline again with save_pretrained(FOLDER)"
        )
    return ModelError(f"{folder} has no safetensors weights: download the model again")


def foreign_format(names: Iterable[str]) -> str | None:
    """Return what a component was exported to, by the names of its files; None for PyTorch."""
    for name in sorted(names):
        suffix = os.path.splitext(name)[1]
        if suffix in _FOREIGN:
            return _FOREIGN[suffix]
    return None


def check_file(root: Path, path: Path) -> None:
    """Check that a file is one: inside its model, regular, and there.

    A snapshot of the hub's cache holds links to the `blobs` beside it, and these alone may leave
    the folder.

    Args:
        root: the model folder, without links in its own path.
        path: the file, below it.

    Raises:
        ModelError: a link out of the folder or to nothing, a pipe or a device, a Git LFS pointer.
    """
    real = path.resolve()
    try:
        mode = real.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            raise ModelError(
                f"{path} is a link to nothing ({os.readlink(path)}): the download was not "
                "finished, or the file was moved; download the model again"
            ) from None
        raise ModelError(
            f"{path} cannot be read ({error.strerror}): download the model again"
        ) from None
    cached = root.parent.name == "snapshots" and real.is_relative_to(root.parents[1] / "blobs")
    # Installers may link a package's files to a store of their own.
    ours = path.is_relative_to(_PACKAGE)
    if not (real.is_relative_to(root) or cached or ours):
        raise ModelError(
            f"{path} is a link out of the model's folder, to {real}: copy the folder with what it "
            f"links to (cp -rL {root} COPY) and build the copy"
        )
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path} is no regular file: download the model again")
    with real.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise ModelError(
                f"{path} is a Git LFS pointer, and not the file that it stands for: run "
                "`git lfs pull` in the repository"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: it is missing, not regular, too large, too deep or no object.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is no regular file: download the model again")
        if status.st_size > _MAX_JSON:
            raise ModelError(f"{path} is too large for a configuration ({status.st_size} bytes)")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: download the model again") from None
    except RecursionError:
        raise ModelError(f"{path} is nested too deeply for a configuration") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): download the model again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object: download the model again")
    return content


def check_safetensors(path: Path, prefix: str = "") -> None:
    """Compare a file's size with what its header says, and refuse what is no plain weights.

    Args:
        path: the file.
        prefix: of the tensors that are read.

    Raises:
        ModelError: no safetensors, truncated, quantised, or with LoRA layers still attached.
    """
    header = read_header(path)
    for key, tensor in header.tensors.items():
        if not key.startswith(prefix):
            continue
        if _ADAPTER.search(key):
            raise ModelError(
                f"{path} has LoRA layers attached ({key}): merge them with pipeline.fuse_lora() "
                "and pipeline.unload_lora_weights(), and save the pipeline again"
            )
        if tensor.dtype not in _PLAIN_DTYPES:
            raise ModelError(
                f"{path} is quantised ({key} is {tensor.dtype}): build from the weights in fp32, "
                "bf16 or fp16"
            )


def open_header(path: Path) -> Header:
    """Read the header of a file that a user named; refuse what is no safetensors in words for it.

    Raises:
        ModelError: a pickle, a quantised file, no regular file, or one that is damaged.
    """
    if path.suffix.lower() in PICKLES or _is_pickle(path):
        raise ModelError(
            f"{path} is a pickle, which is never loaded: load it with torch.load(FILE, "
            'weights_only=True) and write its "state_dict" with safetensors.torch.save_file'
        )
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"{path} is quantised (GGUF): build from the weights in fp32 or fp16")
    real = path.resolve()
    check_file(real.parent, real)
    return read_header(path)


def _is_pickle(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            begin = stream.read(9)
    except OSError:
        return False  # `check_file` says why
    # Of safetensors the first eight bytes are a length, and the ninth opens an object.
    return begin[8:] != b"{" and begin.startswith((b"PK\x03\x04", b"\x80"))


def count_parameters(path: Path, prefix: str = "") -> int:
    """Return how many numbers are in a safetensors file that was checked.

    Args:
        path: the file.
        prefix: of the tensors that count.
    """
    tensors = read_header(path).tensors.items()
    return sum(math.prod(tensor.shape) for key, tensor in tensors if key.startswith(prefix))
