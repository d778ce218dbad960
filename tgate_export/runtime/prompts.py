"""What a call says in words, or in what a text encoder made of them, checked before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.manifest_graphs import Tensor
from tgate_export.bundle.origins import FromMask, FromParameter, FromTokens
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.host_arrays import host_array
from tgate_export.runtime.prompt_chunks import filled_up
from tgate_export.runtime.prompt_syntax import read_a1111

if TYPE_CHECKING:
    from tgate_export.runtime.tokenizer import PromptTokenizer

# A text for each image; or what the prompt encoder takes or gives, by its tensors' names [B, ...].
Prompts = tuple[str, ...] | dict[str, np.ndarray]
Embeds = np.ndarray | Mapping[str, np.ndarray]
SYNTAX = "prompt_syntax"  # the parameter that says how texts are read


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


def needs_encoding(manifest: Manifest, row: Mapping[str, np.ndarray]) -> bool:
    """Whether the prompt encoder has to run for one of `Prompts`; not for all that it would give.

    Args:
        manifest: the bundle's.
        row: of each tensor.
    """
    made = {tensor.name for tensor in manifest.graph(manifest.prompt_encoder).outputs}
    return row.keys() != made or missing_chunks(manifest, row) > 0


def missing_chunks(manifest: Manifest, row: Mapping[str, np.ndarray]) -> int:
    """Return how many chunks of the empty text fill embeddings up; see `filled_up`.

    Args:
        manifest: the bundle's.
        row: of each of the text encoder's outputs, or of its inputs.
    """
    for tensor in manifest.graph(manifest.prompt_encoder).outputs:
        if tensor.name in row and (most := manifest.chunks.get(tensor.name)):
            chunks = len(row[tensor.name]) // int(tensor.shape[1])
            return filled_up(chunks, most) - chunks
    return 0


def check_syntax(values: Mapping[str, Sequence[Any]], prompts: Prompts | None, field: str) -> None:
    """Refuse texts that cannot be read as the call says; `field` is the argument that they are.

    Raises:
        InvalidRequestError: names the argument and the place in it.
    """
    if isinstance(prompts, tuple) and "a1111" in values.get(SYNTAX, ()):
        for text in dict.fromkeys(prompts):
            read_a1111(text, field)


def encoder_rows(
    manifest: Manifest,
    tokenizers: Mapping[str, PromptTokenizer],
    texts: Sequence[str],
    values: Mapping[str, Sequence[Any]],
    warn: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """Return what the text encoder reads for texts, by its inputs' names [texts, ...].

    Args:
        manifest: the bundle's.
        tokenizers: the bundle's, by name.
        texts: to encode.
        values: of the parameters that it takes, one for each text; see `encoder_values`.
        warn: told of what is left out of a text.
    """
    found = {name: tokenizer(texts, warn) for name, tokenizer in tokenizers.items()}
    rows = {}
    for tensor in manifest.graph(manifest.prompt_encoder).inputs:
        origin = tensor.origin
        if isinstance(origin, FromTokens):
            rows[tensor.name] = found[origin.tokens][0]
        elif isinstance(origin, FromMask):
            rows[tensor.name] = found[origin.mask][1]
        elif isinstance(origin, FromParameter):
            rows[tensor.name] = np.array(values[origin.parameter], tensor.dtype)
    return rows


def encoder_values(
    manifest: Manifest, values: Mapping[str, Sequence[Any]], *, negative: bool
) -> dict[str, Sequence[Any]]:
    """Return the values of the parameters that the text encoder takes.

    Args:
        manifest: the bundle's.
        values: by name, one for each text.
        negative: the texts are negative prompts; a parameter of the other ones is 0 for them.
    """
    found: dict[str, Sequence[Any]] = {}
    for tensor in manifest.graph(manifest.prompt_encoder).inputs:
        if isinstance(origin := tensor.origin, FromParameter):
            applies = origin.of is None or (origin.of == "negative_prompt") == negative
            each = values[origin.parameter]
            found[origin.parameter] = each if applies else [0] * len(each)
    return found


def positive(
    manifest: Manifest,
    prompt: str | Sequence[str] | None,
    embeds: Embeds | None,
    image: np.ndarray | None = None,
) -> Prompts:
    """Check what is to be generated: texts or embeddings, not both; of a video its images.

    Raises:
        InvalidRequestError: names the argument and what it may be.
    """
    if embeds is not None:
        if prompt is not None:
            raise InvalidRequestError(
                "give either prompt or prompt_embeds, not both", field="prompt_embeds"
            )
        return _embeds(manifest, "prompt_embeds", embeds)
    if not manifest.takes_prompt:
        if prompt is not None:
            raise InvalidRequestError(
                "prompt has no effect: a video is made from its image", field="prompt"
            )
        return {} if image is None else {"image": image}
    texts = (prompt,) if isinstance(prompt, str) else tuple(prompt or ())
    if not texts or not all(_is_text(text) for text in texts):
        raise InvalidRequestError(
            "prompt must be text, or a non-empty list of texts", field="prompt"
        )
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
                    f"{name} has no effect: {_without_negative(manifest)}; leave it out", field=name
                )
        return None
    if embeds is not None:
        if prompt is not None:
            raise InvalidRequestError(
                "give either negative_prompt or negative_prompt_embeds, not both",
                field="negative_prompt_embeds",
            )
        found: Prompts = _embeds(manifest, "negative_prompt_embeds", embeds)
    else:
        if prompt is None and manifest.absent_negative_prompt == "zeros":
            return None
        found = (prompt or "",) if isinstance(prompt, str | None) else tuple(prompt)
        if not all(_is_text(text) for text in found):
            raise InvalidRequestError(
                "negative_prompt must be text, or a list of texts", field="negative_prompt"
            )
    if count(found) == 1:
        found = repeat(found, prompts)
    if count(found) != prompts:
        raise InvalidRequestError(
            f"{count(found)} negative prompts for {prompts} prompts: give one, or one each",
            field="negative_prompt",
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
            "its array",
            field=argument,
        )
    checked = {name: _tensor(manifest, argument, outputs[name], embeds[name]) for name in outputs}
    counts = {name: len(value) for name, value in checked.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{number} of {name}" for name, number in counts.items())
        raise InvalidRequestError(f"{argument} has {listed}: give as many of each", field=argument)
    return checked


def _tensor(manifest: Manifest, argument: str, tensor: Tensor, value: np.ndarray) -> np.ndarray:
    array = host_array(value, f"{argument}: {tensor.name}")
    most, row = manifest.chunks.get(tensor.name, 1), tensor.shape[1:]
    shapes = [row] if most == 1 else [(n * int(row[0]), *row[1:]) for n in range(1, most + 1)]
    if not len(array.shape) or not len(array) or array.shape[1:] not in shapes:
        wanted = ", ".join(str(dim) for dim in ("prompts", *row))
        times = "" if most == 1 else f", or up to {most} times as many tokens"
        raise InvalidRequestError(
            f"{argument}: {tensor.name} has shape {list(array.shape)}, but this bundle's family "
            f"{manifest.family} takes [{wanted}]{times}: use the text encoder of the bundle's own "
            "model",
            field=argument,
        )
    with np.errstate(over="ignore"):
        array = array.astype(tensor.dtype)
    if not np.isfinite(array).all():
        raise InvalidRequestError(
            f"{argument}: {tensor.name} holds values that are not finite in {tensor.dtype}",
            field=argument,
        )
    chunks = 1 + shapes.index(array.shape[1:])
    # What does not come out even is filled up when the empty text is encoded.
    if most == chunks or most % chunks:
        return array
    return np.tile(array, (1, most // chunks, *[1] * (len(row) - 1)))


def _is_text(value: object) -> bool:
    """Whether this is a string that can be written down; one of undecodable bytes cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
