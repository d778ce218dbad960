"""LoRA files: which layers they change, and by how much, told by the header (no torch)."""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tgate_export.adapters.lora_alphas import Alphas, read_alphas
from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.common.safetensors_header import Header, TensorEntry, read_header, read_values

SUFFIX = ".safetensors"
_DTYPES = ("F64", "F32", "F16", "BF16")
# How the key of a tensor ends, and what the tensor is.
_ROLES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
# How the key of a layer begins, and which component it is of.
_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "diffusion_model.": "unet",
}
COMPONENTS = frozenset(_PREFIXES.values())  # those that files change
_PEFT = "base_model.model."
_BARE = {
    "unet": re.compile(
        r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\."
    ),
    "text_encoder": re.compile(r"(text_model|encoder\.layers)\."),
}
_OTHER_MODELS = re.compile(
    r"^transformer\.|^lora_transformer_|(double|single|joint)_(stream_)?(transformer_)?blocks"
)
_OTHER_KINDS = {
    "DoRA": re.compile(r"dora_scale|lora_magnitude_vector"),
    "LoHa": re.compile(r"\.hada_"),
    "LoKr": re.compile(r"\.lokr_"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "OFT": re.compile(r"\.oft_"),
    "(IA)3": re.compile(r"\.on_input$"),
    "a difference of whole weights": re.compile(r"\.(diff|diff_b|w_norm|b_norm|set_weight)$"),
    "a LoRA of biases": re.compile(r"\.lora_B(\.default)?\.bias$"),
    "a LoRA of embeddings": re.compile(r"lora_embedding_|^bundle_emb\."),
}
_CROSS_ATTENTION = re.compile(r"attn2[._](processor\.)?to_[kv]$")


@dataclass(frozen=True)
class Layer:
    """What a file has for one layer: `weight += scale * alpha / rank * up @ down`.

    Attributes:
        down: key of the tensor [rank, inputs], of a convolution [rank, inputs, height, width].
        up: key of the tensor [outputs, rank], of a convolution [outputs, rank, 1, 1].
        mid: key of the tensor [rank, rank, height, width] between them, if there is one; `down` is
            a convolution of a pixel then.
        shapes: of these tensors, by key.
        rank: the width between them.
        alpha: the file's own factor, times the rank.
    """

    down: str
    up: str
    mid: str | None
    shapes: Mapping[str, tuple[int, ...]]
    rank: int
    alpha: float


@dataclass(frozen=True)
class Lora:
    """A LoRA file.

    Attributes:
        path: the file.
        scale: what its change of the weights is multiplied by.
        layers: what it has, by component and by the file's own name of the layer.
    """

    path: Path
    scale: float
    layers: Mapping[str, Mapping[str, Layer]]

    def factor(self, layer: Layer) -> float:
        """Return what the product of a layer's two tensors is multiplied by."""
        return self.scale * layer.alpha / layer.rank

    def factors(self, component: str) -> list[float]:
        """Return those of a component's layers: alpha need not be in the file itself."""
        return [self.factor(layer) for layer in self.layers.get(component, {}).values()]

    def text_width(self) -> tuple[str, int] | None:
        """Return a cross-attention layer, and the width of text that it reads; None without one."""
        for name, layer in self.layers.get("unet", {}).items():
            if _CROSS_ATTENTION.search(name):
                return name, layer.shapes[layer.down][1]
        return None


def open_lora(file: str, scale: float = 1.0) -> Lora:
    """Read what a LoRA file changes. Every tensor of the file has its place, or it is refused.

    Args:
        file: a safetensors file, in the names of kohya, diffusers or PEFT.
        scale: what its change of the weights is multiplied by.

    Raises:
        InvalidRequestError: no such file, or a scale that is no finite number.
        ModelError: a file that is damaged, of another kind, or has something that is not known.
    """
    path = Path(file).absolute()
    if not path.is_file():
        raise InvalidRequestError(f"lora {file}: no such file", field="loras")
    if not abs(scale) <= sys.float_info.max:  # nor NaN
        raise InvalidRequestError(
            f"lora {file}: its scale must be a finite number, got {scale}", field="loras"
        )
    if path.suffix.lower() != SUFFIX:
        raise ModelError(
            f"lora {file} is no {SUFFIX} file, and nothing else is loaded: save its tensors with "
            "safetensors.torch.save_file"
        )
    header = read_header(path)
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for key, tensor in header.tensors.items():
        name, role = _split(path, key)
        component, name = _component(path, key, name)
        parts = found[component, name]
        if role in parts:
            raise ModelError(f"lora {path} has two of {role} for {name}: {parts[role]} and {key}")
        if role != "alpha" and tensor.dtype not in _DTYPES:
            raise ModelError(f"lora {path} is quantised ({key} is {tensor.dtype})")
        parts[role] = key
    if not found:
        raise ModelError(f"lora {path} is empty: it has no tensor of a LoRA")
    alphas = read_alphas(path, header, peft=any(_PEFT in key for key in header.tensors))
    layers: dict[str, dict[str, Layer]] = defaultdict(dict)
    for (component, name), parts in found.items():
        layers[component][name] = _layer(path, header, alphas, component, name, parts)
    alphas.check_used(path)
    return Lora(path, float(scale), layers)


def _split(path: Path, key: str) -> tuple[str, str]:
    """Return the name of a tensor's layer, and what the tensor is to it."""
    for suffix, role in _ROLES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), role
    for kind, pattern in _OTHER_KINDS.items():
        if pattern.search(key):
            raise ModelError(
                f"lora {path} is {kind} ({key}), which is not supported: LoRA of linear layers and "
                "of convolutions is"
            )
    raise ModelError(f"lora {path} has {key}, which is no tensor of a LoRA")


def _component(path: Path, key: str, name: str) -> tuple[str, str]:
    """Return which component a layer is of, and its name there."""
    if _OTHER_MODELS.search(name):
        raise ModelError(
            f"lora {path} is for a transformer such as FLUX or SD3 ({key}): LoRA is for Stable "
            "Diffusion and SDXL"
        )
    for prefix, component in _PREFIXES.items():
        if name.startswith(prefix):
            return component, name.removeprefix(prefix)
    bare = name.removeprefix(_PEFT)
    for component, pattern in _BARE.items():
        if pattern.match(bare):
            return component, bare
    raise ModelError(f"lora {path} has {key}, which is of no component that is known")


def _layer(
    path: Path, header: Header, alphas: Alphas, component: str, name: str, parts: Mapping[str, str]
) -> Layer:
    for role in ("down", "up"):
        if role not in parts:
            raise ModelError(
                f"lora {path} has {next(iter(parts.values()))} and no {role} weight beside it"
            )
    keys = {role: key for role, key in parts.items() if role != "alpha"}
    shapes = {key: header.tensors[key].shape for key in keys.values()}
    down, up = shapes[keys["down"]], shapes[keys["up"]]
    if min(len(down), len(up)) < 2 or 0 in (*down, *up):
        raise ModelError(
            f"lora {path} has no rank in {keys['down']} {list(down)} and {keys['up']} {list(up)}"
        )
    rank = down[0]
    middle = shapes[keys["mid"]] if "mid" in keys else (rank, rank, 1, 1)
    if up[1] != rank or len(middle) != 4 or middle[:2] != (rank, rank):
        raise ModelError(
            f"lora {path} has other ranks in "
            + " and ".join(f"{key} {list(shape)}" for key, shape in shapes.items())
        )
    if "alpha" in parts:
        alpha = _value(path, parts["alpha"], header.tensors[parts["alpha"]])
    else:
        alpha = alphas.of(component, name, rank)
    return Layer(keys["down"], keys["up"], keys.get("mid"), shapes, rank, alpha)


def _value(path: Path, key: str, tensor: TensorEntry) -> float:
    values = read_values(path, tensor)
    if values is None or values.size != 1 or not math.isfinite(values.item()):
        raise ModelError(f"lora {path}: {key} is not one finite number")
    return float(values.item())
