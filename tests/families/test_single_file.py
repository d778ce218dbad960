"""A checkpoint in one file is a source of weights as a folder is."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import checkpoints, tiny
from tests.support.small_folder import edit_json
from tgate_export.common.errors import InvalidRequestError, ModelError, TGateError
from tgate_export.families.loading import load_tokenizer
from tgate_export.families.single_file import CLIP
from tgate_export.families.source import ModelSource, resolve_source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline's folder `p`, and its checkpoint `model.safetensors`; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    tiny.save("sd15", folder / "p")
    tensors = checkpoints.sd1(checkpoints.parts_of(folder / "p"))
    checkpoints.save(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Path:
    """A copy of it of the test's own."""
    return Path(shutil.copytree(made, tmp_path / "mine"))


def resolved(folder: Path, **options: Any) -> ModelSource:
    return resolve_source(
        str(folder / "model.safetensors"), **{"config": str(folder / "p"), **options}
    )


def refused(error: type[TGateError], model: Path | str, **options: Any) -> str:
    with pytest.raises(error) as caught:
        resolve_source(str(model), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_source(made: Path) -> None:
    source = resolved(made)
    file = made / "model.safetensors"
    assert (source.kind, source.model, source.name) == ("local", str(file), "model")
    record = source.record()
    assert (record.config, record.vae) == (str(made / "p"), None)
    assert "checkpoint.safetensors" in source.files()
    assert not any(name.endswith("diffusion_pytorch_model.safetensors") for name in source.files())
    # By the name of the checkpoint, which a rename changes.
    assert source.paths().count(file) == 1


def test_fingerprint_is_of_contents_alone(mine: Path) -> None:
    before = resolved(mine).record().fingerprint
    moved = mine.rename(mine.with_name("moved"))
    assert resolved(moved).record().fingerprint == before
    (moved / "model.safetensors").rename(moved / "other.safetensors")
    renamed = resolve_source(str(moved / "other.safetensors"), config=str(moved / "p"))
    assert renamed.record().fingerprint == before
    (moved / "README.md").write_text("not read")
    assert resolve_source(
        str(moved / "other.safetensors"), config=str(moved / "p")
    ).record().fingerprint == before  # fmt: skip


def touch_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        touch_weights,
        lambda folder: edit_json(folder / "p" / "unet" / "config.json", norm_eps=1e-6),
        lambda folder: edit_json(
            folder / "p" / "scheduler" / "scheduler_config.json", beta_end=0.5
        ),
        lambda folder: edit_json(
            folder / "p" / "tokenizer" / "tokenizer_config.json", model_max_length=50
        ),
    ],
    ids=["weights", "unet", "scheduler", "tokenizer"],
)
def test_fingerprint_depends_on_what_is_read(mine: Path, change: Callable[[Path], None]) -> None:
    before = resolved(mine).record().fingerprint
    change(mine)
    assert resolved(mine).record().fingerprint != before


def test_fingerprint_depends_on_the_vae(mine: Path) -> None:
    vae = checkpoints.parts_of(mine / "p")["vae"]
    before = resolved(mine).record()
    file = checkpoints.save(vae, mine / "vae.safetensors")
    after = resolved(mine, vae=str(file)).record()
    assert after.fingerprint != before.fingerprint
    assert after.vae == str(file)


def test_a_link_is_followed_and_keeps_its_name(mine: Path) -> None:
    """As the hub's cache has files, and people who share one folder among programs."""
    blob = mine / "0123abcd"
    (mine / "model.safetensors").rename(blob)
    (mine / "model.safetensors").symlink_to(blob)
    assert resolved(mine).name == "model"
    blob.unlink()
    message = refused(InvalidRequestError, mine / "model.safetensors")
    assert message.endswith("model.safetensors: no such file")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.pth"])
def test_pickles(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"never read")
    message = refused(ModelError, tmp_path / name)
    assert f"{name} is a pickle, which is never loaded" in message
    assert "safetensors.torch.save_file" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_in_disguise(tmp_path: Path, *, zipped: bool) -> None:
    file = tmp_path / "model.safetensors"
    if zipped:
        torch.save({"weight": torch.zeros(3)}, file)
    else:
        file.write_bytes(pickle.dumps({"weight": 3}, protocol=2))
    assert "is a pickle, which is never loaded" in refused(ModelError, file)


def test_quantised(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "is quantised (GGUF)" in refused(ModelError, tmp_path / "model.gguf")


def test_truncated(mine: Path) -> None:
    file = mine / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert f"{file} is truncated" in refused(ModelError, file, config=str(mine / "p"))


def test_pointer_of_git_lfs(mine: Path) -> None:
    file = mine / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refused(ModelError, file)


def test_what_is_no_regular_file(mine: Path) -> None:
    os.mkfifo(mine / "pipe.safetensors")
    assert "no such file" in refused(InvalidRequestError, mine / "pipe.safetensors")
    os.mkfifo(mine / "vae")
    message = refused(
        InvalidRequestError, mine / "model.safetensors", config=str(mine / "p"),
        vae=str(mine / "vae"),
    )  # fmt: skip
    assert message.endswith("vae is neither a file nor a folder")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_quantised_weights(mine: Path, dtype: torch.dtype) -> None:
    tensors = checkpoints.sd1(checkpoints.parts_of(mine / "p"))
    key = "model.diffusion_model.out.2.weight"
    checkpoints.save(tensors | {key: tensors[key].to(dtype)}, mine / "model.safetensors")
    message = refused(ModelError, mine / "model.safetensors", config=str(mine / "p"))
    assert f"is quantised ({key}" in message


def test_what_is_for_files_alone(made: Path) -> None:
    message = refused(InvalidRequestError, made / "p", config="x")
    assert "config x is for a checkpoint in one file" in message
    message = refused(InvalidRequestError, made / "model.safetensors", weights="random")
    assert "weights random takes a model name or a folder" in message


def test_configurations_that_are_none(made: Path, tmp_path: Path) -> None:
    file = made / "model.safetensors"
    message = refused(InvalidRequestError, file, config="nothing")
    assert "'nothing' is neither a diffusers folder nor one of shapes, sd15" in message
    assert "sd21-base" in message
    assert "has no model_index.json with a unet" in refused(ModelError, file, config=str(tmp_path))
    assert "has no model_index.json with a unet" in refused(ModelError, file, config="pixart-sigma")
    assert "has another UNet than" in refused(ModelError, file, config="sd15")


def test_without_configurations_its_size_is_odd(made: Path) -> None:
    message = refused(ModelError, made / "model.safetensors")
    assert "has a UNet of a size that no packaged configuration has" in message
    assert message.endswith("config='FOLDER'")


@pytest.mark.parametrize("component", ["vae", "text_encoder"])
def test_components_of_another_size(mine: Path, component: str) -> None:
    entry = {"vae": {"latent_channels": 16}, "text_encoder": {"vocab_size": 600}}[component]
    edit_json(mine / "p" / component / "config.json", **entry)
    message = refused(ModelError, mine / "model.safetensors", config=str(mine / "p"))
    assert f"has a {component} of other sizes than its configuration" in message


def test_folder_without_the_weights_that_are_missing(mine: Path) -> None:
    tensors = checkpoints.sd1(checkpoints.parts_of(mine / "p"))
    rest = {key: value for key, value in tensors.items() if "first_stage" not in key}
    checkpoints.save(rest, mine / "model.safetensors")
    assert resolved(mine).weight_paths("vae")[0].is_relative_to(mine / "p")
    (mine / "p" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "has no safetensors weights" in refused(
        ModelError, mine / "model.safetensors", config=str(mine / "p")
    )


# Of CLIP's own notebooks and of what its users publish.
TOKENS = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "Hello   world": [3306, 1002],
    "a diagram, a dog": [320, 22697, 267, 320, 1929],
}


def without_tokenizer(folder: Path, vocabulary: int, layout: str) -> None:
    """Leave the folder no tokenizer, and give the text encoder another number of tokens."""
    shutil.rmtree(folder / "p" / "tokenizer")
    edit_json(folder / "p" / "text_encoder" / "config.json", vocab_size=vocabulary)
    parts = checkpoints.parts_of(folder / "p")
    (key,) = (key for key in parts["text_encoder"] if "token_embedding" in key)
    parts["text_encoder"][key] = torch.zeros(vocabulary, 32)
    checkpoints.save(checkpoints.WRITERS[layout](parts), folder / "model.safetensors")


@pytest.mark.parametrize(
    ("layout", "folder", "padding"), [("sd1", "padding-end", 49407), ("sd2", "padding-0", 0)]
)
def test_vocabulary(mine: Path, layout: str, folder: str, padding: int) -> None:
    without_tokenizer(mine, 49408, layout)
    source = resolved(mine)
    assert source.folder("tokenizer") == CLIP / folder
    (spec,) = source.family.tokenizers(source)
    tokenizer = load_tokenizer(source, spec)
    for text, tokens in TOKENS.items():
        assert tokenizer(text).input_ids == [49406, *tokens, 49407]
    assert tokenizer.pad_token_id == padding
    assert tokenizer.model_max_length == spec.max_length == 77
    assert {"clip/merges.txt", "clip/vocab.json"} <= set(source.files())


def test_vocabulary_follows_from_its_merges() -> None:
    """The 256 bytes, the same at a word's end, the merges and two ends: 49408 in all."""
    vocabulary = json.loads((CLIP / "vocab.json").read_text(encoding="utf-8"))
    merges = (CLIP / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    assert sorted(vocabulary.values()) == list(range(49408))
    assert ordered[512:-2] == ["".join(merge.split()) for merge in merges]
    assert ordered[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert [f"{letter}</w>" for letter in ordered[:256]] == ordered[256:512]


def test_vocabulary_of_another_size(mine: Path) -> None:
    without_tokenizer(mine, 600, "sd1")
    message = refused(ModelError, mine / "model.safetensors", config=str(mine / "p"))
    assert "its text_encoder knows 600 tokens" in message
