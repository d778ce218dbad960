"""What diffusers and PEFT write of alpha beside a LoRA's tensors (no torch).

diffusers has the settings of PEFT in the file's metadata, with the component before every name;
PEFT has them in `adapter_config.json` beside the file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tgate_export.common.errors import ModelError
from tgate_export.common.json_file import parse_json, read_regular
from tgate_export.common.safetensors_header import Header

_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"
_LARGEST = 1 << 20
# Settings of PEFT that change more than alpha does -> what they are.
_OTHERS = {"use_dora": "DoRA", "lora_bias": "a LoRA of biases", "fan_in_fan_out": "transposed"}


@dataclass
class Alphas:
    """Settings of PEFT.

    Attributes:
        settings: by component; by "" for a file of one component.
        used: patterns of alpha that a layer was found for.
    """

    settings: Mapping[str, Mapping[str, Any]]
    used: set[tuple[str, str]] = field(default_factory=set)

    @cached_property
    def _patterns(self) -> Mapping[str, Mapping[str, tuple[int, str]]]:
        """By component and the end of a name: the first pattern that it is, and its place."""
        found: dict[str, dict[str, tuple[int, str]]] = {}
        for whose, settings in self.settings.items():
            ends = found.setdefault(whose, {})
            for index, pattern in enumerate(settings.get("alpha_pattern", {})):
                ends.setdefault(pattern.removeprefix("^"), (index, pattern))
        return found

    def of(self, component: str, name: str, rank: int) -> float:
        """Return the alpha of a layer that has no tensor of it; its rank where nothing says it."""
        whose = "" if "" in self.settings else component
        settings = self.settings.get(whose)
        if settings is None:
            return float(rank)
        alpha = settings["lora_alpha"]
        # As PEFT does: the first of the patterns that are the name's end.
        parts = name.split(".")
        ends = (".".join(parts[first:]) for first in range(len(parts)))
        patterns = self._patterns[whose]
        if found := min((patterns[end] for end in ends if end in patterns), default=None):
            _, pattern = found
            self.used.add((whose, pattern))
            alpha = settings["alpha_pattern"][pattern]
        # Rank-stabilised LoRA divides by the root of the rank.
        return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1)

    def check_used(self, path: Path) -> None:
        """Refuse patterns of alpha that are of no layer: PEFT takes them as regular expressions."""
        for whose, settings in self.settings.items():
            for pattern in settings.get("alpha_pattern", {}):
                if (whose, pattern) not in self.used:
                    raise ModelError(
                        f"lora {path}: alpha_pattern of its settings names {pattern!r}, which is "
                        "no layer that it has"
                    )


def read_alphas(path: Path, header: Header, *, peft: bool) -> Alphas:
    """Read the settings that go with a file.

    Args:
        path: the file.
        header: its header.
        peft: whether its names are PEFT's own, which say nothing of alpha.

    Raises:
        ModelError: settings that are damaged, missing, or of another kind of adapter.
    """
    if _METADATA in header.metadata:
        where = f"{_METADATA} of lora {path}"
        by_component: dict[str, dict[str, Any]] = {}
        for key, value in _read(header.metadata[_METADATA], where).items():
            component, _, name = key.partition(".")
            by_component.setdefault(component, {})[name] = value
        return Alphas({name: _checked(found, where) for name, found in by_component.items()})
    if not peft:
        return Alphas({})
    file = path.parent / _CONFIG
    try:
        text = read_regular(file, _LARGEST).decode()
    except (OSError, ValueError):
        raise ModelError(
            f"lora {path} has PEFT's names, and its alpha is in {_CONFIG}: put that beside it"
        ) from None
    return Alphas({"": _checked(_read(text, str(file)), str(file))})


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ModelError(f"{where} is no JSON object")
    return content


def _checked(settings: dict[str, Any], where: str) -> dict[str, Any]:
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ModelError(f"{where}: alpha_pattern is no JSON object")
    if not all(map(_is_number, (settings.get("lora_alpha"), *patterns.values()))):
        raise ModelError(f"{where}: lora_alpha or alpha_pattern are no finite numbers")
    for name, kind in _OTHERS.items():
        if settings.get(name):
            raise ModelError(f"{where} says {name}: {kind} is not supported")
    return {**settings, "alpha_pattern": patterns}


def _is_number(value: object) -> bool:
    whole = isinstance(value, (int, float)) and not isinstance(value, bool)
    return whole and abs(cast(float, value)) <= sys.float_info.max
