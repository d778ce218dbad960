"""`build --target`, `inspect` and `generate` with plans, as a user runs them without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import run


def test_plans_of_a_bundle(
    tiny_pipeline_dir: Path, tiny_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Builds for two GPUs, again, and looks at what is there; nothing here can run it."""
    build = (
        "build", "--model", tiny_pipeline_dir, "--out", tiny_bundle_copy,
        "--target", "tensorrt-rtx", "--sm", "8.9", "--sm", "12.0", "--json",
    )  # fmt: skip
    first = run(capsys, *build).json()
    assert first["up_to_date"]  # the graphs
    (plans,) = first["plans"]
    assert plans["compiled"] == ["text_encoder", "full", "gated", "vae_decoder", "sampler"]
    (again,) = run(capsys, *build).json()["plans"]
    assert (again["compiled"], again["reused"]) == ([], plans["compiled"])
    found = run(capsys, "inspect", tiny_bundle_copy, "--json").json()["plans"]
    (name,) = found
    key = found[name]["full"]["key"]
    assert key["compute_capabilities"] == ["8.9", "12.0"]
    assert name.startswith(f"tensorrt-rtx-{key['version']}-sm89+sm120-fp32-b1-16x16")
    assert sum(plan["content"]["bytes"] for plan in found[name].values()) == plans["bytes"]
    table = run(capsys, "inspect", tiny_bundle_copy).out
    assert f"plans/{name}" in table
    assert "SM 8.9, 12.0" in table
    plan = tiny_bundle_copy / "plans" / name / "gated.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"!")
    refused = run(capsys, "generate", tiny_bundle_copy, "--prompt", "a").error()
    assert "gated.plan was changed after the build" in refused


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--target", "tensorrt-rtx", "--sm", "9.0"], 2, "SM 9.0: choose from 7.5, 8.0"),
        (["--target", "tensorrt-rtx"], 1, "name the GPU to compile for with --sm, one of 7.5"),
        (["--target", "tensorrt"], 1, "pip install 'tensorrt>="),
        (["--sm", "8.9"], 2, "--sm needs --target tensorrt"),
        (["--keep-layer-info"], 2, "--keep-layer-info needs --target"),
        (["--target", "tensorrt", "--target", "tensorrt-rtx"], 2, "build twice"),
        (["--target", "tensorrt-rtx", "--sm", "8.9", "--workspace", "0"], 2, "workspace"),
        (["--target", "tensorrt-rtx", "--sm", "8.9", "--strip-weights"], 2, "needs an NVIDIA GPU"),
    ],
)
def test_what_cannot_be_is_one_line_and_builds_nothing(
    tiny_pipeline_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    out = tmp_path / "out"
    result = run(capsys, "build", "--model", tiny_pipeline_dir, "--out", out, *options)
    assert result.code == code
    assert message in result.error()
    assert not out.exists()
