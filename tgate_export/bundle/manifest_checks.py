"""What the parts of a manifest say about one another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tgate_export.bundle.manifest import Manifest, Tensor

# What the host computes -> how many numbers of each sample.
HOST_WIDTHS = {"time_ids": 6, "resolution": 2, "aspect_ratio": 1, "video_ids": 3}


def check_references(manifest: Manifest) -> None:
    """Check that what a manifest names is there, and of the shape that a runtime will write.

    Raises:
        ValueError: says what is not.
    """
    _check_files(manifest)
    _check_prompts(manifest)
    full = manifest.graphs.get("full")
    if full is None:
        return  # refused when it is needed, by name
    inputs, outputs = _shapes(full.inputs), _shapes(full.outputs)
    for name, host in manifest.conditioning.items():
        if inputs.get(name, ())[1:] != (HOST_WIDTHS[host],):
            raise ValueError(f"conditioning: graph 'full' has no input {name!r} for {host}")
    for cache in manifest.cache:
        if cache.tensor not in outputs:
            raise ValueError(f"cache: graph 'full' has no output {cache.tensor!r}")


def _check_files(manifest: Manifest) -> None:
    used = {tokenizer.file for tokenizer in manifest.tokenizers.values()}
    used |= {sampler.file for sampler in manifest.samplers.values()}
    for name, graph in manifest.graphs.items():
        used |= {graph.file} | ({graph.weights} if graph.weights else set())
        if graph.weights is not None and _folder(graph.weights) != _folder(graph.file):
            raise ValueError(f"graphs: the weights of {name!r} do not lie beside it")
    unlisted = sorted(used - manifest.files.keys())
    if unlisted:
        raise ValueError(f"file {unlisted[0]!r} is used but not listed under files")


def _check_prompts(manifest: Manifest) -> None:
    """Check that every input of the text encoder is one that prompts are written to."""
    encoder = manifest.graphs.get("text_encoder")
    inputs = {} if encoder is None else _shapes(encoder.inputs)
    written = {"clip_skip"} if manifest.clip_skips else set()
    for name, tokenizer in manifest.tokenizers.items():
        for tensor in (name, tokenizer.mask or name):
            written.add(tensor)
            if inputs.get(tensor, ())[1:] != (tokenizer.max_length,):
                raise ValueError(
                    f"tokenizers: graph 'text_encoder' has no input {tensor!r} of "
                    f"{tokenizer.max_length} tokens"
                )
    if missing := sorted(inputs.keys() - written):
        raise ValueError(
            f"tokenizers: nothing says what the text encoder's input {missing[0]!r} is"
        )


def _shapes(tensors: Iterable[Tensor]) -> dict[str, tuple[int | str, ...]]:
    return {tensor.name: tensor.shape for tensor in tensors}


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
