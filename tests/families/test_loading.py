"""Weights are loaded from safetensors alone, and completely."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.small_folder import WEIGHTS
from tgate_export.common.errors import ModelError
from tgate_export.families.loading import load
from tgate_export.families.source import resolve_source

Tensors = dict[str, torch.Tensor]


class _Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (self.trace,)  # type: ignore[return-value]


@pytest.fixture
def pipeline(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "mine"))


def plant(pipeline: Path, trace: Path) -> None:
    for component, name in WEIGHTS.items():
        for file in {name.replace(".safetensors", ".bin"), "pytorch_model.bin", "model.ckpt"}:
            (pipeline / component / file).write_bytes(pickle.dumps(_Bomb(trace)))


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Bomb(tmp_path / "trace")))  # noqa: S301
    assert (tmp_path / "trace").exists()


def test_planted_pickles_are_not_loaded(pipeline: Path, tmp_path: Path) -> None:
    plant(pipeline, tmp_path / "trace")
    parts = load(resolve_source(str(pipeline)), "fp32")
    expected = load_file(pipeline / "unet" / WEIGHTS["unet"])
    found = parts["unet"].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("component", WEIGHTS)
def test_pickles_are_not_a_fallback(pipeline: Path, tmp_path: Path, component: str) -> None:
    # Valid safetensors of a name that the libraries do not look for, beside a pickle of one
    # that they do.
    plant(pipeline, tmp_path / "trace")
    weights = pipeline / component / WEIGHTS[component]
    weights.rename(weights.with_name("mine.safetensors"))
    with pytest.raises(ModelError, match=f"{component} has only pickled weights"):
        load(resolve_source(str(pipeline)), "fp32")
    assert not (tmp_path / "trace").exists()


def lose(tensors: Tensors) -> None:
    del tensors[min(tensors)]


def resize(tensors: Tensors) -> None:
    name = min(tensors)
    tensors[name] = torch.zeros([size + 1 for size in tensors[name].shape])


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize(("damage", "reason"), [(lose, "lack "), (resize, "cannot load")])
def test_weights_that_do_not_fit(
    pipeline: Path, component: str, damage: Callable[[Tensors], None], reason: str
) -> None:
    weights = pipeline / component / WEIGHTS[component]
    tensors = load_file(weights)
    damage(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load(resolve_source(str(pipeline)), "fp32")
    assert reason in str(caught.value)
    assert str(pipeline / component) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_tokenizer(pipeline: Path) -> None:
    (pipeline / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot load .*tokenizer"):
        load(resolve_source(str(pipeline)), "fp32")
