"""What soaks of servers share: requests, clients that behave at random, a memory's growth."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

BACKEND = "onnxruntime:cpu"
CLIENTS = 6
GOOD: list[dict[str, Any]] = [
    {"steps": steps, "gate_step": gate, "seed": seed, "scheduler": scheduler}
    for seed, (steps, gate, scheduler) in enumerate(
        [(5, 2, "ddim"), (5, 5, "pndm"), (8, 3, "euler-a"), (12, 4, "dpm++2m"), (20, 8, "unipc")]
    )
]
Kind = Callable[[random.Random], None]


def arguments_of(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a good request as the pipeline takes it."""
    return {"num_inference_steps" if name == "steps" else name: call[name] for name in call}


class Soak:
    """Counts what clients saw, and what went wrong.

    Attributes:
        seen: how often each thing came about.
        problems: what should not have.
    """

    def __init__(self, seconds: float) -> None:
        self.seen: Counter[str] = Counter()
        self.problems: list[str] = []
        self._until = time.monotonic() + seconds

    @property
    def goes_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self._until

    def behave(self, rng: random.Random, kinds: Mapping[Kind, int]) -> None:
        """Do one of some things after another, by their weights, until the time is over."""
        while self.goes_on:
            (kind,) = rng.choices(list(kinds), list(kinds.values()))
            try:
                kind(rng)
            except Exception as error:
                name = getattr(kind, "func", kind).__name__
                self.problems.append(f"{name}: {type(error).__name__}: {error}")


def growth(samples: Sequence[Mapping[str, float]], name: str, settled: float) -> float:
    """Return the bytes a second by which a memory grew, once allocators had settled.

    Args:
        samples: each with its `seconds` from the start.
        name: of the bytes in them.
        settled: the seconds from which they count.
    """
    counted = [sample for sample in samples if sample["seconds"] > settled]
    seconds, sizes = ([sample[key] for sample in counted] for key in ("seconds", name))
    return float(np.polyfit(seconds, sizes, 1)[0])
