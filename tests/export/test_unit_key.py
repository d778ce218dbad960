"""What a unit is exported for, and what leaves it as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tgate_export.bundle.manifest import Range, Size
from tgate_export.common import code_hash, versions
from tgate_export.export import unit as unit_module
from tgate_export.export.unit import EXPORTERS, tokenizer_key, unit_key
from tgate_export.families.graphs import denoiser_phases, graph_exports
from tgate_export.families.loading import load
from tgate_export.families.source import ModelSource, resolve_source
from tgate_export.families.units import units
from tgate_export.methods import tgate, tgate_v2

ONE, TWO = Range(min=1, opt=1, max=1), Range(min=1, opt=2, max=2)
SIZE = Size(height=Range(min=16, opt=16, max=16), width=Range(min=16, opt=16, max=16), multiple=2)
ALL = {"text_encoder", "denoiser", "vae_encoder", "vae_decoder"}
OPTIONS: dict[str, Any] = {
    "precision": "fp32", "size": SIZE, "batch": ONE,
    "method": tgate_v2.METHOD, "phases": ("full", "gated"),
}  # fmt: skip


@pytest.fixture
def pipeline(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "mine"))


def keys(source: ModelSource, **changes: Any) -> dict[str, str]:
    hashes = source.hashes()
    found = {
        unit.name: unit_key(source, unit, hashes, **(OPTIONS | changes))
        for unit in units(source, image_to_image=True)
    }
    (spec,) = source.family.tokenizers(source)
    return found | {"tokenizer": tokenizer_key(source, spec, hashes)}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(pipeline: Path) -> None:
        content = json.loads((pipeline / name).read_text())
        (pipeline / name).write_text(json.dumps(content | changes))

    return edit


def edit_weights(name: str) -> Callable[[Path], None]:
    def edit(pipeline: Path) -> None:
        tensors = load_file(pipeline / name)
        tensors[min(tensors)] += 1
        save_file(tensors, pipeline / name, metadata={"format": "pt"})

    return edit


@pytest.mark.parametrize(
    ("edit", "units"),
    [
        (edit_weights("unet/diffusion_pytorch_model.safetensors"), {"denoiser"}),
        (edit_weights("text_encoder/model.safetensors"), {"text_encoder"}),
        (
            edit_weights("vae/diffusion_pytorch_model.safetensors"),
            {"vae_encoder", "vae_decoder"},
        ),
        # One component's shapes decide on another's.
        (edit_json("unet/config.json", norm_eps=1e-6), ALL),
        (edit_json("text_encoder/config.json", layer_norm_eps=1e-6), {*ALL, "tokenizer"}),
        (edit_json("vae/config.json", scaling_factor=0.5), {"vae_encoder", "vae_decoder"}),
        (edit_json("vae/config.json", block_out_channels=[8, 16, 16]), ALL),
        (edit_json("tokenizer/tokenizer_config.json", model_max_length=7), {"tokenizer"}),
        (edit_json("scheduler/scheduler_config.json", beta_end=0.02), set()),
        (lambda pipeline: (pipeline / "README.md").write_text("nothing"), set()),
    ],
)
def test_files(pipeline: Path, edit: Callable[[Path], None], units: set[str]) -> None:
    before = keys(resolve_source(str(pipeline)))
    edit(pipeline)
    assert changed(before, keys(resolve_source(str(pipeline)))) == units


@pytest.mark.parametrize(
    ("changes", "units"),
    [
        ({"precision": "fp16"}, ALL),
        ({"batch": TWO}, ALL),
        ({"size": SIZE.model_copy(update={"width": TWO})}, ALL),
        ({"size": SIZE.model_copy(update={"multiple": 4})}, ALL),
        ({"phases": ("full", "gated", "gated_reuse")}, {"denoiser"}),
        ({"method": tgate.METHOD}, {"denoiser"}),
    ],
)
def test_settings(tiny_pipeline_dir: Path, changes: dict[str, Any], units: set[str]) -> None:
    source = resolve_source(str(tiny_pipeline_dir))
    assert changed(keys(source), keys(source, **changes)) == units


def test_guidance(tiny_pipeline_dir: Path) -> None:
    source = resolve_source(str(tiny_pipeline_dir))
    assert changed(keys(source), keys(source.guided_by("none"))) == {"denoiser"}


def test_the_same_files_elsewhere_are_the_same(tiny_pipeline_dir: Path, pipeline: Path) -> None:
    one, other = resolve_source(str(tiny_pipeline_dir)), resolve_source(str(pipeline))
    assert one.directory != other.directory
    assert keys(one) == keys(other)


def test_random_weights_are_not_those_of_a_file(tiny_pipeline_dir: Path, pipeline: Path) -> None:
    random = resolve_source(str(tiny_pipeline_dir), "random")
    assert changed(keys(resolve_source(str(tiny_pipeline_dir))), keys(random)) >= ALL
    edit_weights("text_encoder/model.safetensors")(pipeline)
    assert keys(resolve_source(str(pipeline), "random")) == keys(random)


@pytest.mark.parametrize("library", EXPORTERS)
def test_versions(tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    source = resolve_source(str(tiny_pipeline_dir))
    before, version = keys(source), metadata.version
    monkeypatch.setattr(
        versions.metadata, "version", lambda name: "0" if name == library else version(name)
    )
    assert changed(before, keys(source)) >= ALL


def test_code(tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve_source(str(tiny_pipeline_dir))
    before = keys(source)
    monkeypatch.setattr(unit_module, "code_sha256", lambda *_modules: "other")
    assert changed(before, keys(source)) == {*ALL, "tokenizer"}


@pytest.mark.parametrize(
    ("edited", "units"),
    [
        ("families/stable_diffusion/spec.py", ALL),
        ("families/stable_diffusion/modules.py", ALL),
        ("families/pixart/modules.py", set()),
        ("methods/denoiser_phases.py", ALL),
        ("methods/phases.py", {"denoiser"}),
        ("methods/tgate.py", {"denoiser"}),
        ("methods/tgate_v2.py", {"denoiser"}),
        ("families/staging.py", {*ALL, "tokenizer"}),
        ("runtime/pipeline.py", set()),
    ],
)
def test_files_of_our_own(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str,
    units: set[str],
) -> None:  # fmt: skip
    source = resolve_source(str(tiny_pipeline_dir))
    before = keys(source)
    copy = Path(shutil.copytree(code_hash.PACKAGE, tmp_path / "tgate_export"))
    with (copy / edited).open("a") as file:
        file.write("# edited\n")
    monkeypatch.setattr(code_hash, "PACKAGE", copy)
    code_hash.code_sha256.cache_clear()
    try:
        assert changed(before, keys(source)) == units
    finally:
        code_hash.code_sha256.cache_clear()


def test_another_pipeline_of_the_same_parts(tiny_pipeline_dir: Path) -> None:
    source = resolve_source(str(tiny_pipeline_dir))
    assert changed(keys(source), keys(replace(source, pipeline="Another"))) == ALL
    named = replace(source, name="another", model="another", revision="1")
    assert keys(named) == keys(source)


@pytest.mark.parametrize(
    ("guidance", "phases", "image_to_image"),
    [
        ("none", ("full", "gated"), True),
        ("classifier-free", tuple(tgate_v2.METHOD.phases), True),
        ("classifier-free", ("full", "gated"), False),
    ],
)
def test_what_no_key_has_is_declared_alike(
    tiny_pipeline_dir: Path, guidance: Any, phases: tuple[str, ...], image_to_image: bool
) -> None:
    """Units of one key are exported from one declaration, whatever else a bundle is told."""

    def declared(source: ModelSource, names: tuple[str, ...], encoder: bool) -> dict[str, Any]:
        parts = load(source, "fp32")
        found_phases = denoiser_phases(source, parts, SIZE, tgate_v2.METHOD, names)
        graphs = graph_exports(source, parts, SIZE, found_phases, image_to_image=encoder)
        found: dict[str, Any] = {}
        for graph in graphs:
            entry = (graph.name, graph.components, graph.inputs, graph.outputs)
            found.setdefault(graph.unit, []).append(entry)
        return found

    source = resolve_source(str(tiny_pipeline_dir))
    other = source.guided_by(guidance)
    same = keys(source).keys() - changed(keys(source), keys(other, phases=phases))
    one, another = (
        declared(source, ("full", "gated"), True),
        declared(other, phases, image_to_image),
    )
    compared = same & one.keys() & another.keys()
    assert compared >= {"text_encoder", "vae_decoder"}
    assert {name: one[name] for name in compared} == {name: another[name] for name in compared}


def test_tiles_of_all_sizes_are_one_unit(tiny_pipeline_dir: Path) -> None:
    source = resolve_source(str(tiny_pipeline_dir))
    sizes = [
        SIZE.model_copy(update={"width": Range(min=side, opt=side, max=side), "height": TWO})
        for side in (16, 32, 48)
    ]
    tiled = [keys(source, size=size, vae_tile=16) for size in sizes]
    vae = {"vae_encoder", "vae_decoder"}
    assert changed(tiled[1], tiled[2]) == {"text_encoder", "denoiser"}
    assert not changed(tiled[0], tiled[1]) & vae
    # Its values are not limited, since they are blended.
    assert changed(keys(source, size=sizes[0]), tiled[0]) == vae
