"""Puts the emulation where the runtime imports the real modules from."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from tests.support.emulation.cuda import CudaEmulation
from tests.support.emulation.tensorrt import TensorRTEmulation


@dataclass
class Emulation:
    """A machine with a GPU, TensorRT and TensorRT-RTX."""

    cuda: CudaEmulation
    tensorrt: dict[str, TensorRTEmulation]

    def ran(self) -> list[tuple[str, dict[str, int]]]:
        """Return graph and addresses of every run so far."""
        return [run for module in self.tensorrt.values() for run in module.ran]


def install(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    cuda = CudaEmulation()
    package: Any = ModuleType("cuda")
    package.bindings = ModuleType("cuda.bindings")
    package.bindings.runtime = cuda
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", package.bindings)
    modules = {name: TensorRTEmulation(name, cuda) for name in ("tensorrt", "tensorrt_rtx")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module.module())
    return Emulation(cuda, modules)
