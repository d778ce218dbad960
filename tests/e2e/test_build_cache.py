"""What was exported once is not exported again, and a bundle is the same as without."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import FIXED, only_samplers
from tgate_export.build import compare
from tgate_export.build import verify_bundle as verify_module
from tgate_export.build.build import BuildResult, build_bundle
from tgate_export.build.units import load_unit
from tgate_export.build.verify_bundle import verify_bundle
from tgate_export.bundle.integrity import bundle_files, open_bundle
from tgate_export.common.errors import VerificationError
from tgate_export.common.progress import Progress
from tgate_export.common.user_cache import cache_folder
from tgate_export.export.content_cache import ContentCache
from tgate_export.verify import differences as differences_module

# The same as `build`, in a process of its own.
BUILD = """
import sys
from pathlib import Path
from tgate_export.build.build import build_bundle
from tgate_export.bundle.manifest import Range
from tgate_export.samplers import specs
specs.SAMPLERS = {"ddim": specs.SAMPLERS["ddim"]}
build_bundle(sys.argv[1], batch=Range(min=2, opt=2, max=2), out=Path(sys.argv[2]))
"""


class CacheNotes(Progress):
    """What is said of the cache."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, *text: object) -> None:
        message = "".join(map(str, text))
        if "cache" in message:
            self.notes.append(message)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that are exported."""
    from tgate_export.export import export_unit

    names: list[str] = []
    export = export_unit.export_graph

    def export_and_note(graph: Any, *arguments: Any) -> Any:
        names.append(graph.name)
        return export(graph, *arguments)

    monkeypatch.setattr(export_unit, "export_graph", export_and_note)
    return names


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that are compared with PyTorch."""
    from tgate_export.verify import graphs

    names: list[str] = []
    check = graphs.check_graphs

    def check_and_note(bundle: Any, references: Any, *arguments: Any) -> Any:
        names.extend(references)
        return check(bundle, references, *arguments)

    for module in (graphs, verify_module):
        monkeypatch.setattr(module, "check_graphs", check_and_note)
    return names


@pytest.fixture(scope="module")
def cold(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bundle`, and `cache`, in which its units are and nothing else."""
    folder = tmp_path_factory.mktemp("cold")
    build(tiny_pipeline_dir, folder / "bundle")  # which may be out of what tests share
    load = ContentCache.load
    with pytest.MonkeyPatch.context() as patch:

        def load_and_copy(cache: ContentCache, key: str, target: Path) -> object:
            shutil.copytree(cache.folder / key, folder / "cache" / "graphs" / key)
            return load(cache, key, target)

        patch.setattr(ContentCache, "load", load_and_copy)
        build(tiny_pipeline_dir, folder / "again")
    shutil.copytree(cache_folder("samplers"), folder / "cache" / "samplers")
    return folder


@pytest.fixture
def cache(cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that cache, to use and to damage."""
    folder = shutil.copytree(cold / "cache", tmp_path / "cache")
    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(folder))
    return Path(folder) / "graphs"


def build(pipeline: Path, out: Path, **options: Any) -> BuildResult:
    with only_samplers("ddim"):
        return build_bundle(str(pipeline), batch=FIXED, out=out, **options)


def forget(cache: Path, unit: str) -> None:
    """Remove a unit from a cache."""
    (weights,) = cache.glob(f"*/{unit}.weights")
    shutil.rmtree(weights.parent)


def contents(bundle: Path) -> dict[str, bytes]:
    return {name: (bundle / name).read_bytes() for name in bundle_files(bundle)}


def test_a_bundle_out_of_the_cache_is_the_same(
    cold: Path, cache: Path, tiny_pipeline_dir: Path, tmp_path: Path,
    exported: list[str], compared: list[str],
) -> None:  # fmt: skip
    notes = CacheNotes()
    result = build(tiny_pipeline_dir, tmp_path / "warm", progress=notes)
    assert (exported, compared) == ([], [])
    assert contents(tmp_path / "warm") == contents(cold / "bundle")
    open_bundle(tmp_path / "warm")
    # What was measured when they were exported is told, and is within the bounds.
    outputs = {
        (name, tensor.name)
        for name, graph in result.manifest.graphs.items()
        if name != "sampler"
        for tensor in graph.outputs
    }
    assert {(found.graph, found.tensor) for found in result.differences} == outputs
    assert all(0 < found.relative < found.bound for found in result.differences)
    assert notes.notes == [
        "from the cache, compared with PyTorch when exported: text_encoder, denoiser, vae_decoder"
    ]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"gate_step": 8}, []),
        ({"image_to_image": True}, ["vae_encoder"]),
        pytest.param({"guidance": "none"}, ["full", "gated"], marks=pytest.mark.slow),
    ],
)
def test_what_a_change_exports(
    cache: Path, tiny_pipeline_dir: Path, tmp_path: Path, exported: list[str],
    compared: list[str], options: dict[str, Any], names: list[str],
) -> None:  # fmt: skip
    result = build(tiny_pipeline_dir, tmp_path / "out", **options)
    assert exported == compared == names
    assert result.manifest.defaults.gate_step == options.get("gate_step", 10)
    before = list(exported)
    build(tiny_pipeline_dir, tmp_path / "again", **options)
    assert exported == before


def test_nothing_heavy_is_imported(cache: Path, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    block = (
        "import sys\nfor name in ('torch', 'diffusers', 'transformers'): sys.modules[name] = None\n"
    )
    arguments = [sys.executable, "-c", block + BUILD, tiny_pipeline_dir, tmp_path / "out"]
    run = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    open_bundle(tmp_path / "out")


def test_verify_always_compares(
    cold: Path, cache: Path, tiny_pipeline_dir: Path, compared: list[str]
) -> None:
    verify_bundle(cold / "bundle", str(tiny_pipeline_dir))
    assert set(compared) == {"text_encoder", "full", "gated", "vae_decoder"}


def test_a_damaged_unit_is_exported_again(
    cold: Path, cache: Path, tiny_pipeline_dir: Path, tmp_path: Path, exported: list[str]
) -> None:
    (weights,) = cache.glob("*/vae_decoder.weights")
    weights.write_bytes(b"x" * 5000)
    build(tiny_pipeline_dir, tmp_path / "out")
    assert exported == ["vae_decoder"]
    assert contents(tmp_path / "out") == contents(cold / "bundle")


def lose_inputs(graphs: dict[str, Any]) -> None:
    del graphs["vae_decoder"]["inputs"]


def name_another(graphs: dict[str, Any]) -> None:
    graphs["vae_decoder"]["file"] = "graphs/full.onnx"


def have_one_more(graphs: dict[str, Any]) -> None:
    graphs["full"] = graphs["vae_decoder"] | {"file": "graphs/full.onnx"}


@pytest.mark.parametrize("damage", [lose_inputs, name_another, have_one_more])
def test_a_unit_that_is_not_what_its_record_says_is_none(
    cache: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    (weights,) = cache.glob("*/vae_decoder.weights")
    entry, kept = weights.parent, ContentCache(cache, 10**9)
    assert load_unit(kept, entry.name, tmp_path) is not None
    for path in tmp_path.glob("vae_decoder.*"):
        path.unlink()
    record = json.loads((entry / "record.json").read_text())
    damage(record["content"]["graphs"])
    (entry / "record.json").write_text(json.dumps(record))
    assert load_unit(kept, entry.name, tmp_path) is None
    assert not list(tmp_path.glob("vae_decoder.*"))


def test_what_was_compared_by_others_is_compared_again(
    cache: Path, tiny_pipeline_dir: Path, tmp_path: Path, exported: list[str],
    compared: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By other code or another ONNX Runtime, and once."""
    monkeypatch.setattr(compare, "code_sha256", lambda *_modules: "other")
    for name in ("one", "two"):
        build(tiny_pipeline_dir, tmp_path / name)
    assert exported == []
    assert compared == ["text_encoder", "full", "gated", "vae_decoder"]


def test_bounds_are_those_of_now(
    cache: Path, tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(differences_module.GRAPH_BOUNDS, "fp32", 1e-12)  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="allowed is 1e-12"):
        build(tiny_pipeline_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_differs_from_pytorch_is_not_kept(
    cache: Path, tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(cache, "text_encoder")
    monkeypatch.setitem(differences_module.GRAPH_BOUNDS, "fp32", 1e-12)  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="text_encoder: prompt_embeds differs"):
        build(tiny_pipeline_dir, tmp_path / "out")
    assert not list(cache.glob("*/text_encoder.onnx"))


def test_switched_off(
    cache: Path, tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    cold: Path,
) -> None:  # fmt: skip
    """Everything is exported, to the same bytes."""
    monkeypatch.setenv("TGATE_EXPORT_CACHE_SIZE", "0")
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    notes = CacheNotes()
    build(tiny_pipeline_dir, tmp_path / "out", progress=notes)
    assert notes.notes == []
    assert contents(tmp_path / "out") == contents(cold / "bundle")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_two_builds_at_once(
    cold: Path, cache: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    """Neither waits, and one cache serves both."""
    before = set(os.listdir(cache))
    forget(cache, "vae_decoder")
    outs = [tmp_path / "one", tmp_path / "two"]
    builds = [
        subprocess.Popen([sys.executable, "-c", BUILD, tiny_pipeline_dir, out]) for out in outs
    ]
    assert [build.wait() for build in builds] == [0, 0]
    for out in outs:
        assert contents(out) == contents(cold / "bundle")
    assert set(os.listdir(cache)) == before
