"""Headers of safetensors files that say what cannot be are refused before anything is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tgate_export.common.errors import ModelError
from tgate_export.common.safetensors_header import read_header, read_tensor

GOOD: dict[str, Any] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path: Path, header: dict[str, Any], size: int = 24) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


def test_what_the_library_writes(tmp_path: Path) -> None:
    names = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64",
             "int32", "int16", "int8", "uint8", "uint16", "bool")  # fmt: skip
    tensors = {name: torch.ones(2, 3).to(getattr(torch, name)) for name in names}
    save_file({**tensors, "none": torch.ones(0, 4)}, tmp_path / "a.safetensors")
    found = read_header(tmp_path / "a.safetensors").tensors
    assert {name: entry.shape for name, entry in found.items()} == {
        **dict.fromkeys(names, (2, 3)), "none": (0, 4),
    }  # fmt: skip
    assert (read_tensor(tmp_path / "a.safetensors", found["bfloat16"]) == 1).all()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, 8]},
        {"shape": [3]},
        {"shape": [-2, -3]},
        {"shape": [2**31, 0], "data_offsets": [0, 0]},
        {"shape": [10**400, 0], "data_offsets": [0, 0]},
        {"data_offsets": [24, 0]},
        {"dtype": "F64"},
    ],
)
def test_entries_that_contradict_themselves(tmp_path: Path, change: dict[str, Any]) -> None:
    file = write(tmp_path / "a.safetensors", {"a": GOOD | change, "b": GOOD})
    with pytest.raises(ModelError, match=r"a\.safetensors is not a safetensors"):
        read_header(file)


def test_a_name_that_no_message_can_quote(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "a.safetensors", {"n" * 500: GOOD}))
    file = write(tmp_path / "b.safetensors", {"n" * 501: GOOD})
    with pytest.raises(ModelError) as caught:
        read_header(file)
    assert len(str(caught.value)) < 300
