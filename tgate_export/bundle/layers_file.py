"""`graphs/<unit>.layers.json`: where a model's weights are among the constants of its graphs.

It lists every weight that a LoRA may change, of linear layers and convolutions, so that a bundle's
weights can be changed without the model (`build/fuse_loras.py`). Runtimes have no use for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from tgate_export.bundle.fields import MAX_RANK, BundleModel, Name, Positive
from tgate_export.bundle.integrity import Bundle
from tgate_export.common.errors import BundleError
from tgate_export.common.json_file import TABLE_BYTES, parse_json, read_regular

SUFFIX = ".layers.json"


class Constant(BundleModel):
    """A constant of a graph that is a layer's weight.

    Attributes:
        graph: the graph's name.
        initializer: the constant's.
        transposed: whether it is the weight's transpose: [inputs, outputs].
    """

    graph: Name
    initializer: str
    transposed: bool


class Layer(BundleModel):
    """A linear layer or a convolution.

    Attributes:
        shape: of its weight: [outputs, inputs], or [outputs, inputs, height, width].
        constants: that are its weight; none where no graph reads it.
    """

    shape: Annotated[tuple[Positive, ...], Field(max_length=MAX_RANK)]
    constants: tuple[Constant, ...]


class LayersFile(BundleModel):
    """The whole of a file: layers by component and path."""

    schema_version: Literal[1] = 1
    layers: dict[Name, dict[str, Layer]]


Layers = Mapping[str, Mapping[str, Layer]]


def write_layers(file: Path, layers: Layers) -> None:
    """Write layers by component and path, a component a line."""
    content = LayersFile(layers={name: dict(found) for name, found in layers.items()})
    file.write_text(content.model_dump_json() + "\n", encoding="utf-8")


def read_layers(bundle: Bundle) -> Layers:
    """Return the layers of a bundle by component and path; none of a bundle without such a file.

    Raises:
        BundleError: a file that cannot be read, or names a graph that the bundle has not.
    """
    found: dict[str, Mapping[str, Layer]] = {}
    for name in bundle.manifest.files:
        if not name.endswith(SUFFIX):
            continue
        path = bundle.file(name)
        try:
            text = read_regular(path, TABLE_BYTES).decode()
            parse_json(text)
            layers = LayersFile.model_validate_json(text).layers
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise BundleError(f"{path}: {field}: {first['msg']}: build the bundle again") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"cannot read {path} ({error}): build the bundle again") from None
        if fault := _fault(bundle, layers):
            raise BundleError(f"{path} {fault}: build the bundle again")
        found |= layers
    return found


def _fault(bundle: Bundle, layers: Layers) -> str:
    """Return what is wrong with the constants that layers name, or ""."""
    seen: set[tuple[str, str]] = set()
    for component in layers.values():
        for layer in component.values():
            for constant in layer.constants:
                if constant.graph not in bundle.manifest.graphs:
                    return f"names graph {constant.graph!r}, which is not there"
                key = constant.graph, constant.initializer
                if key in seen:
                    return f"has two layers for {constant.initializer!r} of {constant.graph!r}"
                seen.add(key)
    return ""
