"""What a call says in words, or in what a text encoder made of them, checked before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tgate_export.bundle.manifest import Manifest, Tensor
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.host_arrays import host_array

# A text for each image; or what the prompt encoder takes or gives, by its tensors' names [B, ...].
Prompts = tuple[str, ...] | dict[str, np.ndarray]
Embeds = np.ndarray | Mapping[str, np.ndarray]


def count(prompts: Prompts) -> int:
    """Return how many prompts these are."""
    if isinstance(prompts, tuple):
        return len(prompts)
    return len(next(iter(prompts.values())))


def repeat(prompts: Prompts, times: int) -> Prompts:
    """Return every prompt `times` times, its copies side by side."""
    if isinstance(prompts, tuple):
        return tuple(text for text in prompts for _ in range(times))
    return {name: np.repeat(value, times, axis=0) for name, value in prompts.items()}


def needs_encoding(manifest: Manifest, prompts: Prompts) -> bool:
    """Whether the prompt encoder has to run; not for what it would give."""
    if isinstance(prompts, tuple):
        return True
    return prompts.keys() != {
        tensor.name for tensor in manifest.graph(manifest.prompt_encoder).outputs
    }


def positive(
    manifest: Manifest,
    prompt: str | Sequence[str] | None,
    embeds: Embeds | None,
    image: np.ndarray | None = None,
) -> Prompts:
    """Check what is to be drawn: texts or embeddings, not both; of a video its images.

    Raises:
        InvalidRequestError: names the argument and what it may be.
    """
    if embeds is not None:
        if prompt is not None:
            raise InvalidRequestError("give either prompt or prompt_embeds, not both")
        return _embeds(manifest, "prompt_embeds", embeds)
    if manifest.latents.frames is not None:
        if prompt is not None:
            raise InvalidRequestError("prompt has no effect: a video is drawn from its image")
        return {} if image is None else {"image": image}
    texts = (prompt,) if isinstance(prompt, str) else tuple(prompt or ())
    if not texts or not all(_is_text(text) for text in texts):
        raise InvalidRequestError("prompt must be text, or a non-empty list of texts")
    return texts


def negative(
    manifest: Manifest, prompt: str | Sequence[str] | None, embeds: Embeds | None, prompts: int
) -> Prompts | None:
    """Check what is to be avoided, and return it for each of `prompts`.

    None without classifier-free guidance, and where an absent negative prompt is zeros.

    Raises:
        InvalidRequestError: names the argument and what it may be.
    """
    if not manifest.takes_negative:
        for name, given in (
            ("negative_prompt", bool(prompt)),
            ("negative_prompt_embeds", embeds is not None),
        ):
            if given:
                raise InvalidRequestError(
                    f"{name} has no effect: {_without_negative(manifest)}; leave it out"
                )
        return None
    if embeds is not None:
        if prompt is not None:
            raise InvalidRequestError(
                "give either negative_prompt or negative_prompt_embeds, not both"
            )
        found: Prompts = _embeds(manifest, "negative_prompt_embeds", embeds)
    else:
        if prompt is None and manifest.absent_negative_prompt == "zeros":
            return None
        found = (prompt or "",) if isinstance(prompt, str | None) else tuple(prompt)
        if not all(_is_text(text) for text in found):
            raise InvalidRequestError("negative_prompt must be text, or a list of texts")
    if count(found) == 1:
        found = repeat(found, prompts)
    if count(found) != prompts:
        raise InvalidRequestError(
            f"{count(found)} negative prompts for {prompts} prompts: give one, or one each"
        )
    return found


def _without_negative(manifest: Manifest) -> str:
    if manifest.guidance == "classifier-free":
        return f"a {manifest.family} bundle takes none"
    return "this bundle has no classifier-free guidance"


def _embeds(manifest: Manifest, argument: str, embeds: Embeds) -> dict[str, np.ndarray]:
    """Check embeddings against the text encoder's outputs, and return them in its dtypes."""
    outputs = {tensor.name: tensor for tensor in manifest.graph(manifest.prompt_encoder).outputs}
    if not isinstance(embeds, Mapping):
        embeds = {next(iter(outputs)): embeds}
    if embeds.keys() != outputs.keys():
        raise InvalidRequestError(
            f"{argument} has {', '.join(embeds)}, but the "
            f"{manifest.prompt_encoder.replace('_', ' ')} of this bundle's family "
            f"{manifest.family} makes {', '.join(outputs)}: give a mapping from each name to "
            "its array"
        )
    checked = {name: _tensor(manifest, argument, outputs[name], embeds[name]) for name in outputs}
    counts = {name: len(value) for name, value in checked.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{number} of {name}" for name, number in counts.items())
        raise InvalidRequestError(f"{argument} has {listed}: give as many of each")
    return checked


def _tensor(manifest: Manifest, argument: str, tensor: Tensor, value: np.ndarray) -> np.ndarray:
    array = host_array(value, f"{argument}: {tensor.name}")
    if not len(array.shape) or not len(array) or array.shape[1:] != tensor.shape[1:]:
        wanted = ", ".join(str(dim) for dim in ("prompts", *tensor.shape[1:]))
        raise InvalidRequestError(
            f"{argument}: {tensor.name} has shape {list(array.shape)}, but this bundle's family "
            f"{manifest.family} takes [{wanted}]: use the text encoder of the bundle's own model"
        )
    with np.errstate(over="ignore"):
        array = array.astype(tensor.dtype)
    if not np.isfinite(array).all():
        raise InvalidRequestError(
            f"{argument}: {tensor.name} holds values that are not finite in {tensor.dtype}"
        )
    return array


def _is_text(value: object) -> bool:
    """Whether this is a string that can be written down; one of undecodable bytes cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
