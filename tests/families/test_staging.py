"""What is loaded is what was hashed: no pickle, no file elsewhere, and no code of a folder."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from tests.support.small_folder import WEIGHTS, edit_json, write_json
from tgate_export.common.errors import ModelError
from tgate_export.families.loading import load, load_component
from tgate_export.families.names import NAMED_MODELS
from tgate_export.families.source import ModelSource, resolve_source
from tgate_export.families.staging import plain_config, staged_tokenizer

COMPONENTS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


@pytest.fixture
def pipeline(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "mine"))


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `torch.load` was called with."""
    calls: list[str] = []

    def spy(file: object, *_args: object, **_options: object) -> None:
        calls.append(str(file))
        raise RuntimeError("a pickle")

    monkeypatch.setattr(torch, "load", spy)
    return calls


def refused(folder: Path, component: str | None = None) -> str:
    def build() -> None:
        source = resolve_source(str(folder))
        if component:
            load_component(source, component, "fp32")

    with pytest.raises(ModelError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    return message


def shard(folder: Path, component: str, where: str) -> None:
    """Split a component's weights: the first tensor beside its index, all others in `where`."""
    whole = folder / component / WEIGHTS[component]
    tensors = load_file(whole)
    whole.unlink()
    first, *others = tensors
    save_file({first: tensors[first]}, whole.with_name("a.safetensors"), metadata={"format": "pt"})
    rest = {name: tensors[name] for name in others}
    target = whole.parent / where
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".bin":
        torch.save(rest, target)
    else:
        save_file(rest, target, metadata={"format": "pt"})
    mapping = {first: "a.safetensors", **dict.fromkeys(others, where)}
    write_json(whole.with_name(f"{whole.name}.index.json"), {"weight_map": mapping})


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_same_module_as_the_library_loads(pipeline: Path, component: str) -> None:
    expected = COMPONENTS[component].from_pretrained(pipeline / component)
    found = load_component(resolve_source(str(pipeline)), component, "fp32")
    config: Any = found.config
    for key in json.loads((pipeline / component / "config.json").read_text()):
        if key not in (
            "_class_name",
            "_name_or_path",
            "architectures",
            "dtype",
            "transformers_version",
        ):
            assert getattr(config, key, None) == getattr(expected.config, key, None), key
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())


@pytest.mark.parametrize("component", COMPONENTS)
def test_shards_beside_their_index(pipeline: Path, component: str) -> None:
    expected = load_file(pipeline / component / WEIGHTS[component])
    shard(pipeline, component, "b.safetensors")
    source = resolve_source(str(pipeline))
    names = {name for name in source.files() if name.startswith(component)}
    assert {f"{component}/a.safetensors", f"{component}/b.safetensors"} < names
    found = load_component(source, component, "fp32").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items() if name in found)
    assert len(found) >= len(expected) - 1  # position ids are no weights


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize(
    "where",
    ["evil.bin", "../../else/b.safetensors", "../../else/b.bin", "sub/b.safetensors",
     "..\\b.safetensors"],
)  # fmt: skip
def test_shards_elsewhere(pipeline: Path, unpickled: list[str], component: str, where: str) -> None:
    shard(pipeline, component, where)
    assert f"names {where!r}: shards are .safetensors files beside their index" in refused(pipeline)
    absolute = str(pipeline.parent / "b.safetensors")
    index = next((pipeline / component).glob("*.index.json"))
    for value in (absolute, 3, "..", ".safetensors/", "x\0.safetensors"):
        write_json(index, {"weight_map": {"a": value}})
        assert "shards are .safetensors files" in refused(pipeline)
    assert not unpickled


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "other.safetensors", "../../other.safetensors"]
)
def test_weights_that_a_configuration_names(
    pipeline: Path, unpickled: list[str], name: str
) -> None:
    folder = pipeline / "text_encoder"
    tensors = load_file(folder / WEIGHTS["text_encoder"])
    others = {key: value + 1 for key, value in tensors.items() if value.is_floating_point()}
    save_file(others, folder / name)
    edit_json(folder / "config.json", transformers_weights=name)
    found = load_component(resolve_source(str(pipeline)), "text_encoder", "fp32").state_dict()
    assert all(torch.equal(found[key], value) for key, value in tensors.items() if key in found)
    assert not unpickled


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_code_that_a_folder_names(pipeline: Path, tmp_path: Path, weights: Any) -> None:
    """Neither files of the folder nor kernels of the hub are imported."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n"
    for folder in (pipeline, *(path for path in pipeline.iterdir() if path.is_dir())):
        (folder / "evil.py").write_text(code)
    names = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "CLIPTextModel": "evil.Evil",
             "AutoTokenizer": ["evil.Evil", "evil.Evil"]}  # fmt: skip
    kernel = "attacker/kernel"
    edit_json(
        pipeline / "text_encoder" / "config.json", auto_map=names, architectures=["Evil"],
        attn_implementation=kernel, _attn_implementation=kernel,
        _attn_implementation_internal=kernel, experts_implementation=kernel,
        per_layer_config={"0": {"attn_implementation": kernel}},
    )  # fmt: skip
    for component in ("unet", "vae"):
        edit_json(pipeline / component / "config.json", auto_map=names, trust_remote_code=True)
    edit_json(
        pipeline / "tokenizer" / "tokenizer_config.json", auto_map=names,
        tokenizer_class="EvilTokenizer", trust_remote_code=True,
    )  # fmt: skip
    edit_json(pipeline / "model_index.json", custom_pipeline="evil", evil=["evil", "Evil"])
    parts = load(resolve_source(str(pipeline), weights), "fp32")
    config: Any = parts["text_encoder"].config
    assert config._attn_implementation == "sdpa"
    assert not {"auto_map", "per_layer_config"} & set(vars(config))
    assert not mark.exists()


@pytest.mark.parametrize("name", NAMED_MODELS)
def test_every_setting_of_the_published_models_is_kept(name: str) -> None:
    """What is left out of a configuration is nothing that its class declares."""
    source = resolve_source(name, "random")
    for component, class_name in source.family.weights.items():
        library, _, attribute = class_name.partition(".")
        cls = getattr(importlib.import_module(library), attribute)
        config = source.config(component)
        assert config.keys() - plain_config(cls, config).keys() <= {
            "_class_name", "_name_or_path", "architectures", "dtype", "model_type", "torch_dtype",
            "transformers_version",
        }  # fmt: skip


# ------------------------------------------------------------------------------ links


def out_of_folder(pipeline: Path, name: str) -> None:
    path = pipeline / name
    path.rename(pipeline.parent / "secret")
    path.symlink_to(pipeline.parent / "secret")


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
     "unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json", "vae"],
)  # fmt: skip
def test_links_out_of_the_folder(pipeline: Path, name: str) -> None:
    out_of_folder(pipeline, name)
    message = refused(pipeline)
    assert f"{pipeline / name}" in message
    assert "is a link out of the model's folder" in message
    assert "cp -rL" in message
    copy = pipeline.parent / "copy"
    shutil.copytree(pipeline, copy)  # as cp -rL: what links stand for
    assert resolve_source(str(copy))


def test_links_inside_and_to_the_folder(pipeline: Path) -> None:
    (pipeline / "vae").rename(pipeline / "shared-vae")
    (pipeline / "vae").symlink_to("shared-vae")
    (pipeline.parent / "link").symlink_to(pipeline)
    assert resolve_source(str(pipeline.parent / "link")).directory == pipeline


@pytest.fixture
def snapshot(pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline as the hub's cache has it."""
    repository = tmp_path / "models--some--one"
    folder = repository / "snapshots" / ("a" * 40)
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in pipeline.rglob("*") if p.is_file())):
        blob, link = repository / "blobs" / str(number), folder / path.relative_to(pipeline)
        shutil.copyfile(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


def test_snapshot_of_the_cache(snapshot: Path, pipeline: Path) -> None:
    source = resolve_source(str(snapshot))
    assert source.record().fingerprint == resolve_source(str(pipeline)).record().fingerprint
    assert load_component(source, "vae", "fp32")


@pytest.mark.parametrize("target", ["../../../secret", "../../../../secret", "/etc/hostname"])
def test_snapshot_that_leaves_its_blobs(snapshot: Path, target: str) -> None:
    path = snapshot / "unet" / "config.json"
    path.unlink()
    (snapshot.parents[1] / "secret").write_text("{}")
    (snapshot.parents[2] / "secret").write_text("{}")
    path.symlink_to(target)
    assert "is a link out of the model's folder" in refused(snapshot)


def test_blob_that_is_gone(snapshot: Path) -> None:
    path = snapshot / "unet" / WEIGHTS["unet"]
    path.resolve().unlink()
    message = refused(snapshot)
    assert f"{path} is a link to nothing (../../../blobs/" in message


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/tokenizer.json"])
def test_pipes_do_not_hang(pipeline: Path, name: str) -> None:
    (pipeline / name).unlink()
    os.mkfifo(pipeline / name)
    assert f"{pipeline / name} is no regular file" in refused(pipeline)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000])
def test_configuration_too_deep(pipeline: Path, content: str) -> None:
    (pipeline / "unet" / "config.json").write_text(content)
    assert "unet/config.json" in refused(pipeline)


# ------------------------------------------------------------------------------ tokenizers


def test_tokenizer_files_that_a_configuration_names(pipeline: Path, tmp_path: Path) -> None:
    """A vocabulary elsewhere is not read, whatever the libraries do with its name."""
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps({"secret": 0}))
    edit_json(
        pipeline / "tokenizer" / "tokenizer_config.json", vocab_file=str(elsewhere),
        merges_file=str(elsewhere), tokenizer_file=str(elsewhere),
        special_tokens_map_file=str(elsewhere), init_inputs=[str(elsewhere)],
        fast_tokenizer_files=["../../elsewhere.1.0.0.json"],
    )  # fmt: skip
    source = resolve_source(str(pipeline))
    with staged_tokenizer(source, "tokenizer") as staged:
        assert str(elsewhere) not in (staged / "tokenizer_config.json").read_text()
        assert "elsewhere" not in (staged / "tokenizer_config.json").read_text()
    assert "secret" not in tokens(source)
    assert len(tokens(source)) == 514


def tokens(source: ModelSource) -> dict[str, int]:
    vocabulary: dict[str, int] = load(source, "fp32").tokenizers["input_ids"].get_vocab()
    return vocabulary


def test_nothing_of_the_stage_is_left(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    made = pipeline.parent / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    load(resolve_source(str(pipeline)), "fp32")
    (pipeline / "unet" / WEIGHTS["unet"]).write_bytes(
        (pipeline / "vae" / WEIGHTS["vae"]).read_bytes()
    )
    message = refused(pipeline, "unet")
    assert str(made) not in message
    assert not list(made.iterdir())
