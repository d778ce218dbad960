"""The emulation's comparisons on a real GPU, with plans that are compiled for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.emulation.real import installed_flavour, write_real
from tgate_export import TGatePipeline
from tgate_export.bundle.plans import Flavour
from tgate_export.runtime.backends.base import BackendError, BackendOptions
from tgate_export.runtime.backends.cuda import Cuda

pytestmark = pytest.mark.gpu
TOLERANCE = 2e-2  # of latents of about unit variance: TensorRT computes fp32 in TF32 on Ampere


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    found = installed_flavour()
    if found is None:
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed")
    return found


@pytest.fixture(scope="module")
def planned(tiny_bundle: Path, flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with plans for this GPU."""
    try:
        Cuda(flavour)
    except BackendError as error:
        pytest.skip(error.reason)
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("gpu") / "bundle"))
    write_real(bundle, flavour)
    return bundle


def latents_of(pipeline: TGatePipeline, **kwargs: Any) -> np.ndarray:
    defaults = {"num_inference_steps": 6, "gate_step": 2, "seed": 5, "output_type": "latent"}
    return np.asarray(pipeline("a", **(defaults | kwargs)).images)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_same_latents_as_on_the_cpu(planned: Path, flavour: Flavour, cuda_graphs: bool) -> None:
    cpu = TGatePipeline.from_bundle(planned, "onnxruntime:cpu")
    options = BackendOptions(cuda_graphs=cuda_graphs)
    gpu = TGatePipeline.from_bundle(planned, flavour, options=options)
    for run in ({}, {"scheduler": "pndm", "gate_step": 3}, {"gate_step": 99}, {}):
        expected = latents_of(cpu, **run)
        np.testing.assert_allclose(latents_of(gpu, **run), expected, atol=TOLERANCE)
        np.testing.assert_array_equal(latents_of(gpu, **run), latents_of(gpu, **run))


def test_timings_and_memory_are_the_devices(planned: Path, flavour: Flavour) -> None:
    pipeline = TGatePipeline.from_bundle(planned, flavour)
    timings = pipeline("a", num_inference_steps=6, gate_step=2, output_type="np").timings
    assert all(step.denoiser > 0 and step.solver > 0 for step in timings.steps)
    assert 0 < sum(step.denoiser for step in timings.steps) < timings.total
    report = pipeline.backend.memory_report()
    assert report is not None
    assert report.activations > 0
    assert sum(report.weights.values()) > 0
