"""A model with textual inversions: which of them fit, and what of it depends on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.families.test_loras import changed, keys
from tests.support import tiny
from tests.support.checkpoints import save
from tests.support.once import made_once
from tgate_export.common.errors import InvalidRequestError, ModelError, TGateError
from tgate_export.export.unit import tokenizer_key
from tgate_export.families.embeddings import are_added
from tgate_export.families.loading import load_component, load_tokenizer
from tgate_export.families.source import ModelSource, resolve_source

Given = tuple[Path | str, str | None]


@pytest.fixture
def model(tiny_pipeline_dir: Path) -> str:
    return str(tiny_pipeline_dir)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made_once(tmp_path_factory, "pipelines/sdxl", lambda path: tiny.save("sdxl", path)))


def file_of(path: Path, vectors: int = 2, width: int = 32, value: float = 1.0) -> Path:
    return save({"emb_params": torch.full((vectors, width), value)}, path)


def resolved(model: str, *given: Given) -> ModelSource:
    return resolve_source(model, embeddings=[(str(file), token) for file, token in given])


def tokenizer_keys(source: ModelSource) -> str:
    (spec,) = source.family.tokenizers(source)
    return tokenizer_key(source, spec, source.hashes())


def test_only_the_text_encoder_depends_on_a_file(model: str, tmp_path: Path) -> None:
    file = file_of(tmp_path / "fox.safetensors")
    other = file_of(tmp_path / "else.safetensors", value=2.0)
    one = file_of(tmp_path / "one.safetensors", vectors=1)
    plain = resolved(model)
    found = {
        "fox": resolved(model, (file, None)),
        "cat": resolved(model, (file, "cat-toy")),
        "else": resolved(model, (other, "fox")),
        "one": resolved(model, (one, "fox")),
        "both": resolved(model, (file, None), (one, None)),
        "turned": resolved(model, (one, None), (file, None)),
    }
    for name, source in found.items():
        assert changed(keys(plain), keys(source)) == {"text_encoder"}, name
    assert len({keys(source)["text_encoder"] for source in found.values()}) == 6
    assert len({source.record().fingerprint for source in (plain, *found.values())}) == 7
    # A tokenizer knows tokens and how many there are, and not what stands for them.
    assert tokenizer_keys(found["fox"]) == tokenizer_keys(found["else"])
    names = ("fox", "cat", "one", "both", "turned")
    assert len({tokenizer_keys(source) for source in (plain, *map(found.get, names))}) == 6


def test_ids_count(model: str, tmp_path: Path) -> None:
    """Another tokenizer gives other ids, so that the vectors lie elsewhere."""
    file = file_of(tmp_path / "fox.safetensors")
    before = keys(resolved(model, (file, None)))
    changed_model = shutil.copytree(model, tmp_path / "model")
    path = changed_model / "tokenizer" / "tokenizer_config.json"
    path.write_text(path.read_text() + " ")
    plain = changed(keys(resolved(model)), keys(resolved(str(changed_model))))
    assert not plain
    assert changed(before, keys(resolved(str(changed_model), (file, None)))) == {"text_encoder"}


def test_it_is_the_content_that_counts(model: str, tmp_path: Path) -> None:
    one = file_of(tmp_path / "fox.safetensors")
    (tmp_path / "else").mkdir()
    other = Path(shutil.copy(one, tmp_path / "else" / "b.safetensors"))
    first, second = resolved(model, (one, None)), resolved(model, (other, "fox"))
    assert keys(first) == keys(second)
    records = first.record(), second.record()
    assert records[0].fingerprint == records[1].fingerprint
    assert records[0].given_embeddings() == ((str(one), "fox"),)
    assert are_added([(str(other), "fox")], records[0].embeddings)
    assert not are_added([(str(other), None)], records[0].embeddings)
    assert not are_added([], records[0].embeddings)


def test_vectors_have_the_ids_of_their_tokens(model: str, sdxl: str, tmp_path: Path) -> None:
    file = save(
        {"clip_l": torch.full((2, 32), 3.0), "clip_g": torch.full((2, 48), 4.0)},
        tmp_path / "fox.safetensors",
    )
    for weights in ("pretrained", "random"):
        source = resolve_source(sdxl, weights, embeddings=[(str(file), None)])  # type: ignore[arg-type]
        plain = resolve_source(sdxl, weights)  # type: ignore[arg-type]
        for spec, value in zip(source.family.tokenizers(source), (3.0, 4.0), strict=True):
            known = load_tokenizer(source, spec)
            rows = [known.convert_tokens_to_ids(token) for token in ("fox", "fox_1")]
            encoder, before = (
                load_component(which, spec.encoder, "fp16").get_input_embeddings().weight  # type: ignore[operator]
                for which in (source, plain)
            )
            assert encoder.dtype == torch.float16
            assert (encoder[rows] == value).all()
            others = [row for row in range(len(before)) if row not in rows]
            assert torch.equal(encoder[others], before[others])
            assert len(encoder) == max(len(before), max(rows) + 1)


def refused(error: type[TGateError], model: str, *given: Given) -> str:
    with pytest.raises(error) as caught:
        resolved(model, *given)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_of_another_model(
    model: str, sdxl: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wide = file_of(tmp_path / "wide.safetensors", width=1024)
    assert "its vectors have width 1024, and the model's text_encoder reads width 32" in (
        refused(ModelError, model, (wide, None))
    )
    narrow = file_of(tmp_path / "narrow.safetensors")
    assert "for one text encoder (emb_params), and Stable Diffusion XL has 2 text encoders" in (
        refused(ModelError, sdxl, (narrow, None))
    )
    both = save(
        {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 40)}, tmp_path / "b.safetensors"
    )
    assert "for 2 text encoders (clip_l, clip_g), and Stable Diffusion 1.x and 2.x has one" in (
        refused(ModelError, model, (both, None))
    )
    assert "width 40, and the model's text_encoder_2 reads width 48" in (
        refused(ModelError, sdxl, (both, None))
    )
    pixart = made_once(
        tmp_path_factory, "pipelines/pixart-alpha", lambda path: tiny.save("pixart-alpha", path)
    )
    message = refused(InvalidRequestError, str(pixart), (narrow, None))
    assert "textual inversions are for Stable Diffusion and SDXL, and this is PixArt" in message


def test_more_vectors_than_a_prompt_holds(model: str, tmp_path: Path) -> None:
    assert resolved(model, (file_of(tmp_path / "a.safetensors", vectors=75), "<a>")).embeddings
    message = refused(ModelError, model, (file_of(tmp_path / "b.safetensors", 76), "<b>"))
    assert "has 76 vectors, and a prompt holds 75 tokens" in message


def test_a_file_that_is_given_twice(model: str, tmp_path: Path) -> None:
    file = file_of(tmp_path / "fox.safetensors")
    (tmp_path / "link.safetensors").symlink_to(file)
    for again in (file, tmp_path / "link.safetensors"):
        assert "is given twice" in (
            refused(InvalidRequestError, model, (file, None), (again, "<dog>"))
        )


@pytest.mark.parametrize(
    ("first", "second", "vectors"),
    [
        ("<fox>", "<fox>", 1),
        ("<fox>", "<FOX>", 1),
        ("fox", "fox_1", 2),
        ("fox", "fox_2", 2),  # which would be a third vector
        ("fox", "foxes", 2),  # whose letters would be replaced
        ("fox", "a-fox", 2),
    ],
)
def test_tokens_that_would_be_read_for_one_another(
    model: str, tmp_path: Path, first: str, second: str, vectors: int
) -> None:
    one = file_of(tmp_path / "a.safetensors", vectors=vectors), first
    two = file_of(tmp_path / "b.safetensors", vectors=1), second
    for given in ((one, two), (two, one)):
        message = refused(InvalidRequestError, model, *given)
        assert f"its token {second!r} would be read for {first!r}" in message or (
            first.lower() == second.lower()
        )
        assert "give another: embeddings=" in message
    # A single vector replaces nothing.
    if vectors == 2 and "_" not in second:
        alone = file_of(tmp_path / "c.safetensors", vectors=1), first
        assert len(resolved(model, alone, two).embeddings) == 2


@pytest.mark.parametrize("token", ["a", "A", "<|endoftext|>", "<|EndOfText|>"])
def test_tokens_that_the_tokenizer_has(model: str, tmp_path: Path, token: str) -> None:
    source = resolved(model, (file_of(tmp_path / "a.safetensors"), token))
    with pytest.raises(InvalidRequestError, match="the model's tokenizer has the token") as caught:
        load_component(source, "text_encoder", "fp32")
    assert "give another: embeddings=" in str(caught.value)


def test_a_tokenizer_takes_no_more(model: str, tmp_path: Path) -> None:
    files = [(file_of(tmp_path / f"{i}.safetensors", vectors=75), f"<{i}>") for i in range(55)]
    source = resolved(model, *files)
    (spec,) = source.family.tokenizers(source)
    with pytest.raises(ModelError, match="4125 tokens and the 2 that the tokenizer has added"):
        load_tokenizer(source, spec)


@pytest.mark.parametrize(("value", "precision"), [("nan", "fp32"), ("inf", "fp32"), (1e5, "fp16")])
def test_numbers_that_are_none(model: str, tmp_path: Path, value: str, precision: str) -> None:
    file = file_of(tmp_path / "fox.safetensors", value=float(value))
    with pytest.raises(ModelError, match="emb_params has infinite numbers or what is no number"):
        load_component(resolved(model, (file, None)), "text_encoder", precision)  # type: ignore[arg-type]
