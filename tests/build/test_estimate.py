"""What a build is said to take before it begins is about what it takes."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import safe_open

from tgate_export.build.estimate import estimate
from tgate_export.bundle.integrity import read_manifest
from tgate_export.families.model_files import count_parameters
from tgate_export.families.source import resolve_source


def test_bytes_are_about_those_of_the_bundle(shapes_bundle: Path) -> None:
    built = sum(file.bytes for file in read_manifest(shapes_bundle).files.values())
    # The VAE's encoder is counted, and not built; what is no weight is guessed.
    assert math.isclose(estimate(resolve_source("shapes")).bytes, built, rel_tol=0.2)


def test_parameters_are_those_that_safetensors_reads(shapes_dir: Path) -> None:
    (file,) = (shapes_dir / "unet").glob("*.safetensors")
    with safe_open(file, "np") as opened:
        expected = sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    assert count_parameters(file) == expected
    assert estimate(resolve_source("shapes")).minutes == 1
