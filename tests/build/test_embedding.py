"""A bundle of a model with textual inversions is the model with what diffusers loads of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from tests.support import tiny
from tests.support.checkpoints import save
from tests.support.command import run
from tests.support.embeddings import PROMPTS, Embedded, embedded, vectors
from tests.support.once import made_once
from tgate_export import TGatePipeline
from tgate_export.build.verify_bundle import verify_bundle
from tgate_export.bundle.integrity import open_bundle
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import ModelError
from tgate_export.runtime.rebuild import rebuild
from tgate_export.runtime.tokenizer import PromptTokenizer
from tgate_export.verify.differences import require

pytestmark = [
    pytest.mark.builds,
    pytest.mark.filterwarnings("ignore:the prompt is longer"),
]
CALL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 6.0, "output_type": "np"}
# fp32 on both sides, as in tests/e2e/test_families.py; the vectors change embeddings by far more.
RELATIVE = 2e-6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_dir: Path) -> Embedded:
    return embedded(tmp_path_factory, tiny_pipeline_dir)


def token_ids(bundle: Path, prompts: list[str]) -> list[np.ndarray]:
    manifest = open_bundle(bundle).manifest
    return [
        PromptTokenizer(bundle / spec.file, spec)(prompts)[0]
        for spec in manifest.tokenizers.values()
    ]


def encoded(bundle: Path, ids: list[np.ndarray]) -> list[Any]:
    """Return the outputs of a bundle's text encoder."""
    session = onnxruntime.InferenceSession(bundle / "graphs" / "text_encoder.onnx")
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, [*ids, np.zeros(len(ids[0]), np.int64)], strict=True)))


def assert_close(found: np.ndarray, expected: torch.Tensor) -> None:
    assert np.abs(found - expected.detach().numpy()).max() < RELATIVE * np.abs(found).max()


def expected_ids(pipe: Any, tokenizer: Any) -> np.ndarray:
    return tokenizer(
        pipe.maybe_convert_prompt(PROMPTS, tokenizer),
        padding="max_length", max_length=77, truncation=True, return_tensors="np",
    ).input_ids  # fmt: skip


def test_stable_diffusion(made: Embedded, tiny_pipeline_dir: Path, tiny_bundle: Path) -> None:
    pipe = made.pipeline(tiny_pipeline_dir)
    ids = token_ids(made.bundle, PROMPTS)
    assert (ids[0] == expected_ids(pipe, pipe.tokenizer)).all()
    expected, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    assert_close(encoded(made.bundle, ids)[0], expected)

    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    call = {"prompt": PROMPTS[0], "negative_prompt": "fox", **CALL}
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    image = pipe(latents=torch.from_numpy(latents), height=16, width=16, **call).images
    found, without = (
        TGatePipeline.from_bundle(path, "onnxruntime:cpu")(
            latents=latents, scheduler="ddim", gate_step=CALL["num_inference_steps"], **call
        ).images
        for path in (made.bundle, tiny_bundle)
    )
    assert np.abs(found - image).max() < 1e-3
    assert np.abs(without - image).max() > 1e-2


def test_stable_diffusion_xl(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """diffusers takes what is for each text encoder apart."""
    folder = made_once(tmp_path_factory, "pipelines/sdxl", lambda path: tiny.save("sdxl", path))
    file = save(
        {"clip_l": vectors(2, 32, 3), "clip_g": vectors(2, 48, 4)}, tmp_path / "style.safetensors"
    )
    with tiny.only_samplers("ddim", "euler", "dpm++2m"):  # as others build it
        out = tiny.build(
            "sdxl", folder, tmp_path / "bundle", embeddings=[(str(file), "<cat>")]
        ).path
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        pipe.load_textual_inversion(
            {"<cat>": load_file(file)[key]},
            tokenizer=getattr(pipe, f"tokenizer{suffix}"),
            text_encoder=getattr(pipe, f"text_encoder{suffix}"),
        )
    ids = token_ids(out, PROMPTS)
    for found, tokenizer in zip(ids, (pipe.tokenizer, pipe.tokenizer_2), strict=True):
        assert (found == expected_ids(pipe, tokenizer)).all()
    embeds, _, pooled, _ = pipe.encode_prompt(
        PROMPTS, device="cpu", do_classifier_free_guidance=False
    )
    for output, expected in zip(encoded(out, ids), (embeds, pooled), strict=True):
        assert_close(output, expected)

    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    call = {"prompt": PROMPTS[0], **CALL}
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    image = pipe(latents=torch.from_numpy(latents), height=16, width=16, **call).images
    ours = TGatePipeline.from_bundle(out, "onnxruntime:cpu")(
        latents=latents, scheduler="ddim", gate_step=CALL["num_inference_steps"], **call
    )
    assert np.abs(ours.images - image).max() < 1e-3


def test_what_a_bundle_says_of_it(
    made: Embedded,
    tiny_pipeline_dir: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cat, fox = made.cat, made.fox
    bundle, plain = open_bundle(made.bundle), open_bundle(tiny_bundle)
    for name in ("denoiser.weights", "vae_decoder.weights"):
        assert bundle.manifest.files[f"graphs/{name}"] == plain.manifest.files[f"graphs/{name}"]
    assert f" --embedding '{cat}:<cat>' --embedding {fox}:fox " in on_command_line(rebuild(bundle))
    said = run(capsys, "inspect", made.bundle).out.replace("\n", "")
    assert f"embedding  {cat} as <cat>" in said
    require(verify_bundle(made.bundle).differences)

    copy = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    moved = Path(shutil.copy(cat, tmp_path / "cat.safetensors"))
    manifest = (copy / "manifest.json").read_text().replace(str(cat), str(moved))
    (copy / "manifest.json").write_text(manifest)
    build = ("build", "--model", tiny_pipeline_dir, "--out", copy)
    with tiny.only_samplers("ddim"):
        given = ("--embedding", moved, "--embedding", f"{fox}:fox")
        assert "is up to date" in run(capsys, *build, *given).err
        assert "is up to date" not in run(capsys, *build, *given[:2]).err
        assert run(capsys, *build, *given).code == 0
    save({"<cat>": vectors(3, 32, 3)}, moved)
    with pytest.raises(ModelError, match="is not the file that the bundle was built with"):
        verify_bundle(copy)
    moved.unlink()
    with pytest.raises(ModelError, match=r"embedding .* is not there any more"):
        verify_bundle(copy)


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["no.safetensors"], 2, "embedding no.safetensors: no such file"),
        (["no.safetensors:<cat>"], 2, "embedding no.safetensors:<cat>: no such file"),
        (["{file}:"], 2, "'' cannot be a token"),
        (["{file}:a cat"], 2, "'a cat' cannot be a token"),
        (["{file}", "{file}:<cat>"], 2, "is given twice"),
        (["{file}:a"], 2, "has the token 'a' already: give another: --embedding"),
        (["{pickle}"], 1, "is no .safetensors file, and nothing else is loaded"),
        (["{wide}"], 1, "its vectors have width 7, and the model's text_encoder reads width 32"),
        (["{nan}"], 1, "emb_params has infinite numbers or what is no number"),
    ],
)
def test_refused(
    capsys: pytest.CaptureFixture[str],
    tiny_pipeline_dir: Path,
    tmp_path: Path,
    options: list[str],
    code: int,
    reason: str,
) -> None:
    torch.save({"string_to_param": {"*": vectors(1, 32, 1)}}, tmp_path / "mine.pt")
    files = {
        "file": save({"emb_params": vectors(2, 32, 1)}, tmp_path / "mine.safetensors"),
        "wide": save({"emb_params": vectors(2, 7, 1)}, tmp_path / "wide.safetensors"),
        "nan": save({"emb_params": torch.full((1, 32), torch.nan)}, tmp_path / "nan.safetensors"),
        "pickle": tmp_path / "mine.pt",
    }
    out = tmp_path / "out" / "bundle"
    given = [word for option in options for word in ("--embedding", option.format(**files))]
    with tiny.only_samplers("ddim"):
        result = run(capsys, "build", "--model", tiny_pipeline_dir, "--out", out, *given)
    assert reason in result.err.splitlines()[-1]
    assert result.code == code
    assert not list((tmp_path / "out").glob("*"))
