"""A backend whose graphs take known times on a clock of its own, and which makes no pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tgate_export.bundle.integrity import open_bundle
from tgate_export.runtime import pipeline as pipeline_module
from tgate_export.runtime.backends.base import Backend, Execute, Memory
from tgate_export.runtime.pipeline import TGatePipeline
from tgate_export.runtime.plan import BindingPlan, Launch

SECONDS = {"text_encoder": 0.5, "full": 2.0, "gated": 0.75, "sampler": 0.125, "vae_decoder": 1.0}


class Clock:
    """Time that passes only when a graph runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeMemory(Memory):
    def __init__(self, plan: BindingPlan) -> None:
        self.values = {
            name: np.zeros(spec.shape, spec.dtype) for name, spec in plan.buffers.items()
        }

    def write(self, buffer: str, value: np.ndarray) -> None:
        np.copyto(self.values[buffer], value)

    def read(self, buffer: str) -> np.ndarray:
        return self.values[buffer].copy()


class FakeBackend(Backend):
    """Advances the clock by each graph's seconds; `ran` is called with every graph's launch.

    A picture's brightness is `gate / 100 + carry / 25`, `gate` counting the evaluations of `full`.
    """

    name = "fake"

    def __init__(
        self,
        clock: Clock,
        seconds: Mapping[str, float] = SECONDS,
        ran: Callable[[Launch, FakeMemory], None] = lambda launch, memory: None,
    ) -> None:
        super().__init__()
        self.clock = clock
        self.seconds_of = seconds
        self.ran = ran
        self.launched: list[str] = []

    def allocate(self, plan: BindingPlan) -> Memory:
        return FakeMemory(plan)

    def prepare(self, launch: Launch, memory: Memory, batch: int | None = None) -> Execute:
        assert isinstance(memory, FakeMemory)

        def execute() -> None:
            self.launched.append(launch.graph)
            self.clock.now += self.seconds_of[launch.graph]
            if launch.graph == "vae_decoder":
                carry = memory.values.get("parameter/guidance_carry", np.zeros(1)).max()
                shade = self.launched.count("full") % 100 / 100 + carry / 25
                memory.values["images"][:] = shade
            self.ran(launch, memory)

        return execute

    def mark(self) -> float:
        return self.clock.now


def fake_pipeline(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, backend: FakeBackend
) -> TGatePipeline:
    """Return a pipeline whose whole time is the backend's clock."""
    monkeypatch.setattr(pipeline_module, "perf_counter", backend.clock)
    return TGatePipeline(open_bundle(bundle, check_hashes=False), backend)
