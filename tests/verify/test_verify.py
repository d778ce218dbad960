"""`verify_bundle` runs what the runtime runs."""

from __future__ import annotations

import json
from pathlib import Path

from tgate_export.build.verify_bundle import verify_bundle
from tgate_export.verify.differences import require


def test_runs_without_guidance_are_compared_with_the_prompt_s_pass(tiny_bundle_copy: Path) -> None:
    """As of an LCM without an embedded guidance scale, whose default is 1."""
    file = tiny_bundle_copy / "manifest.json"
    manifest = json.loads(file.read_text())
    defaults = {
        "guidance_scale": 0.5, "num_inference_steps": 3, "gate_step": 2, "scheduler": "ddim",
    }  # fmt: skip
    for name, value in defaults.items():
        manifest["parameters"][name]["default"] = value
    manifest["samplers"] = {"ddim": manifest["samplers"]["ddim"]}
    manifest["parameters"]["scheduler"]["choices"] = ["ddim"]
    file.write_text(json.dumps(manifest))
    verification = verify_bundle(tiny_bundle_copy)
    # Three gates, and one whose numbers are not the official ones.
    assert len(verification.trajectories) == 4
    require((*verification.graphs, *verification.trajectories))
