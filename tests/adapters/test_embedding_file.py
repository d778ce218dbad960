"""What is in a textual inversion file, and which files are refused, by the header alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.loras import save
from tgate_export.adapters.embedding_file import open_embedding
from tgate_export.common.errors import InvalidRequestError, ModelError, TGateError

VECTORS = torch.ones(3, 8)
SDXL = {"clip_l": torch.ones(3, 8), "clip_g": torch.ones(3, 6)}


def refused(error: type[TGateError], file: Path | str, token: str | None = None) -> str:
    with pytest.raises(error) as caught:
        open_embedding(str(file), token)
    message = str(caught.value)
    assert "\n" not in message
    assert Path(file).name in message
    return message


@pytest.mark.parametrize(
    ("tensors", "token", "widths"),
    [
        ({"emb_params": VECTORS}, "mine", {"text_encoder": 8}),
        ({"<cat>": VECTORS}, "<cat>", {"text_encoder": 8}),
        (SDXL, "mine", {"text_encoder": 8, "text_encoder_2": 6}),
    ],
)
def test_layouts(
    tmp_path: Path, tensors: dict[str, torch.Tensor], token: str, widths: dict[str, int]
) -> None:
    file = save(tensors, tmp_path / "mine.safetensors")
    found = open_embedding(str(file))
    assert (found.token, found.widths, found.vectors) == (token, widths, 3)
    assert found.tokens == (token, f"{token}_1", f"{token}_2")
    assert sorted(found.tensors.values()) == sorted(tensors)
    assert open_embedding(str(file), "<dog>").token == "<dog>"


def test_a_single_vector(tmp_path: Path) -> None:
    for shape in ((8,), (1, 8)):
        file = save({"emb_params": torch.ones(shape).half()}, tmp_path / "a.safetensors")
        assert open_embedding(str(file)).tokens == ("a",)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "is no textual inversion: expected emb_params, one tensor under the token's name"),
        ({"a": VECTORS, "b": VECTORS}, "and it has a, b"),
        ({"clip_l": VECTORS}, "and it has clip_l"),
        ({**SDXL, "emb_params": VECTORS}, "and it has clip_g, clip_l, emb_params"),
        ({**SDXL, "clip_g": torch.ones(2, 6)}, "clip_l [3, 8] and clip_g [2, 6]"),
        ({"emb_params": torch.ones(0, 8)}, "emb_params is [0, 8], expected vectors"),
        ({"emb_params": torch.ones(2, 0)}, "emb_params is [2, 0], expected vectors"),
        ({"emb_params": torch.ones(())}, "emb_params is [], expected vectors"),
        ({"emb_params": torch.ones(1, 2, 8)}, "emb_params is [1, 2, 8], expected vectors"),
        ({"emb_params": VECTORS.long()}, "emb_params is I64, expected floating point"),
    ],
)
def test_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], reason: str) -> None:
    assert reason in refused(ModelError, save(tensors, tmp_path / "mine.safetensors"))


@pytest.mark.parametrize("token", ["", " ", "a cat", "a\tb", "\x1b[1m", "x" * 257, "\ud800"])
def test_what_is_no_token(tmp_path: Path, token: str) -> None:
    file = save({"emb_params": VECTORS}, tmp_path / "mine.safetensors")
    message = refused(InvalidRequestError, file, token)
    assert "cannot be a token, which has 1 to 256 bytes and no spaces" in message
    assert "give another: embeddings=" in message
    spaced = file.rename(tmp_path / "my cat.safetensors")
    assert "'my cat' cannot be a token" in refused(InvalidRequestError, spaced)
    assert open_embedding(str(spaced), "<cat>").token == "<cat>"


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in refused(InvalidRequestError, tmp_path / "b.safetensors")
    assert "no such file" in refused(InvalidRequestError, tmp_path)
    file = save({"emb_params": VECTORS}, tmp_path / "a.safetensors")
    content = file.read_bytes()
    for size in (len(content) - 1, 40, 8, 3, 0):
        file.write_bytes(content[:size])
        message = refused(ModelError, file)
        assert "is truncated" in message or "is not a safetensors file" in message
    for name in ("a.pt", "a.bin"):
        torch.save({"string_to_param": {"*": VECTORS}}, tmp_path / name)
        message = refused(ModelError, tmp_path / name)
        assert "is no .safetensors file, and nothing else is loaded" in message
        assert "torch.load(FILE, weights_only=True)" in message
        assert "safetensors.torch.save_file" in message
    (tmp_path / "a.pt").rename(tmp_path / "b.safetensors")
    assert "is not a safetensors file" in refused(ModelError, tmp_path / "b.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(
    tensors=st.dictionaries(
        st.sampled_from(["emb_params", "clip_l", "clip_g", "<cat>", "é", "\x00", ""]),
        st.lists(st.integers(0, 3), max_size=3), max_size=3,
    ),
    token=st.none() | st.text(max_size=5),
)  # fmt: skip
def test_any_file_is_read_or_refused_in_a_line(
    folder: Path, tensors: dict[str, list[int]], token: str | None
) -> None:
    made = {key: torch.ones(shape) for key, shape in tensors.items()}
    file = save(made, folder / "a.safetensors")
    try:
        found = open_embedding(str(file), token)
    except TGateError as error:
        lines = str(error).splitlines()
    else:
        lines = [found.token]
        assert set(found.tensors.values()) == tensors.keys()
    assert len(lines) == 1
