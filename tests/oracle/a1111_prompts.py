"""Long and weighted prompts in plain PyTorch, with transformers' tokenizers and text encoders.

Written from what A1111's web UI documents and does, and sharing no code with us: brackets by
recursion on the text, chunks by lists of single tokens.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ROOM = 75
WEIGHT = re.compile(r"([+-]?[.0-9]+)\s*$")


class BadPromptError(ValueError):
    """Brackets that do not match, or what is no weight."""


def parse(text: str) -> list[tuple[str | None, float]]:
    """Return (text, weight) of a prompt, and (None, 1) for each BREAK; equal weights are joined."""
    characters: list[tuple[str | None, float]] = []
    end = _inside(text, 0, "", 1.0, characters)
    assert end == len(text)
    joined: list[tuple[str | None, float]] = []
    for character, weight in characters:
        last = joined[-1] if joined else (None, 0.0)
        if character is not None and last[0] is not None and last[1] == weight:
            joined[-1] = (last[0] + character, weight)
        else:
            joined.append((character, weight))
    return joined or [("", 1.0)]


def _inside(
    text: str, at: int, opened: str, weight: float, found: list[tuple[str | None, float]]
) -> int:
    """Append characters from a place on with their weight; return the place of what ends them."""
    while at < len(text):
        character = text[at]
        if character == "\\":
            if text[at + 1 : at + 2] and text[at + 1] in "\\()[]":
                found.append((text[at + 1], weight))
                at += 1
        elif character in "([":
            at = _bracket(text, at, character, weight, found)
        elif character in ")]":
            if {")": "(", "]": "["}[character] != opened:
                raise BadPromptError(text)
            return at
        elif (character == "|" and opened == "[") or _word(text, at, "AND"):
            raise BadPromptError(text)
        elif _word(text, at, "BREAK"):
            found.append((None, 1.0))
            at += 4
        else:
            found.append((character, weight))
        at += 1
    if opened:
        raise BadPromptError(text)
    return at


def _bracket(
    text: str, at: int, opened: str, weight: float, found: list[tuple[str | None, float]]
) -> int:
    inner: list[tuple[str | None, float]] = []
    end = _inside(text, at + 1, opened, 1.0, inner)
    # What stands before the end without a bracket or an escape in between.
    tail = re.search(r"[^\\()\[\]]*$", text[at + 1 : end])
    assert tail is not None
    number = tail[0].rpartition(":")[2].strip() if ":" in tail[0] else ""
    weird = re.fullmatch(r"[+-]?([.\d]+e[+-]?\d+|nan|inf|infinity)", number, re.I | re.A)
    if weird or WEIGHT.fullmatch(number):
        try:
            value = float(number)
        except ValueError:
            raise BadPromptError(text) from None
        if weird or opened == "[" or abs(value) > 100:
            raise BadPromptError(text)
        times = weight * value
        written = len(tail[0]) - tail[0].rindex(":")
        inner = []
        _inside(text[: end - written], at + 1, "", times, inner)
    else:
        times = weight * (1.1 if opened == "(" else 1 / 1.1)
        inner = []
        _inside(text[:end], at + 1, "", times, inner)
    if any(each is not None and not abs(product) <= 100 for each, product in inner):
        raise BadPromptError(text)
    found += inner
    return end


def _word(text: str, at: int, word: str) -> bool:
    return re.compile(rf"\b{word}\b").match(text, at) is not None


def chunks(tokenizer: Any, text: str, room: int = ROOM) -> list[list[tuple[int, float]]]:
    """Return the chunks of a prompt, of so many (id, weight) at most."""
    comma = tokenizer.get_vocab().get(",</w>")
    full: list[list[tuple[int, float]]] = []
    now: list[tuple[int, float]] = []
    last_comma = None
    for part, weight in parse(text):
        if part is None:
            full.append(now)
            now, last_comma = [], None
            continue
        for token in tokenizer(part, add_special_tokens=False, truncation=False).input_ids:
            if token == comma:
                last_comma = len(now)
            elif len(now) == room and last_comma is not None and last_comma >= room - 20:
                full.append(now[: last_comma + 1])
                now, last_comma = now[last_comma + 1 :], None
            if len(now) == room:
                full.append(now)
                now, last_comma = [], None
            now.append((token, weight))
    return full if full and not now else [*full, now]


def embeddings(
    directory: Path, text: str, number: int, clip_skip: int = 0
) -> dict[str, np.ndarray]:
    """Encode a prompt to so many chunks, by the names of a bundle's text conditions [1, ...].

    Args:
        directory: of a pipeline of Stable Diffusion or SDXL.
        text: of as many chunks as divide `number`; others are filled up.
        number: of chunks.
        clip_skip: layers.
    """
    import torch

    with torch.no_grad():
        return _encoded(directory, text, number, clip_skip)


def _encoded(directory: Path, text: str, number: int, clip_skip: int) -> dict[str, np.ndarray]:
    import torch

    from tests.oracle.families import load_pipeline

    pipe = load_pipeline(directory, "diffusers")
    two = hasattr(pipe, "text_encoder_2")
    found: dict[str, np.ndarray] = {}
    sides = []
    for suffix in ("", "_2") if two else ("",):
        tokenizer, model = (
            getattr(pipe, f"tokenizer{suffix}"),
            getattr(pipe, f"text_encoder{suffix}"),
        )
        length = min(77, model.config.max_position_embeddings)
        parts = chunks(tokenizer, text, length - 2)
        while number % len(parts):
            parts.append([])
        encoded = []
        for index, part in enumerate(parts):
            ids = [tokenizer.bos_token_id, *(token for token, _ in part), tokenizer.eos_token_id]
            ids += [tokenizer.pad_token_id] * (length - len(ids))
            weights = torch.tensor([1.0, *(weight for _, weight in part)])
            weights = torch.cat([weights, torch.ones(length - len(weights))])
            output = model(torch.tensor([ids]), output_hidden_states=True)
            hidden = output.hidden_states[(-2 if two else -1) - clip_skip]
            if not two:
                hidden = getattr(model, "text_model", model).final_layer_norm(hidden)
            elif suffix and index == 0:
                found["text_embeds"] = output.text_embeds.numpy()
            mean = hidden.mean()
            hidden = hidden * weights[None, :, None]
            encoded.append(hidden * (mean / hidden.mean()))
        sides.append(torch.cat(encoded * (number // len(parts)), dim=1))
    return {"prompt_embeds": torch.cat(sides, dim=-1).numpy(), **found}
