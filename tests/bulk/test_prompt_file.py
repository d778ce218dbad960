"""Files of prompts: checked whole before anything is generated, then read a line at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tgate_export.bulk.prompt_file import LineIndex, PromptFile, check_defaults
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.common.errors import InvalidRequestError, TGateError

WriteLines = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def checked(settings: BulkSettings, bundle: Bundle) -> LineIndex:
    with PromptFile(settings, bundle.manifest) as file:
        return file.check(bundle)


def test_lines_are_found_again(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle
) -> None:
    path = write_lines({"prompt": "ä", "steps": 2}, "", "  ", {"prompt": "b", "id": "x"})
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b'{"prompt": "c"}')
    index = checked(settings, bundle)
    assert index.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(index.numbers) == [1, 4, 5]
    with PromptFile(settings, bundle.manifest) as file:
        assert file.sha256() == index.sha256
        found = [file.line(*at) for at in zip(index.numbers, index.offsets, strict=True)]
    assert [line.arguments["prompt"] for line in found] == ["ä", "b", "c"]
    assert [line.id for line in found] == [1, "x", 5]
    assert [line.arguments["seed"] for line in found] == [101, 104, 105]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "it is no JSON"),
        ({"prompt": "a", "steps": 0}, "steps must be at least 1, got 0"),
        ({"prompt": "a", "steps": 101}, "steps must be 1 to 100, got 101"),
        ({"prompt": "a", "steps": "4"}, "steps must be a whole number, got '4'"),
        ({"prompt": "a", "gate_step": 1, "warm_up": 2}, "give a gate_step of at least 2"),
        ({"prompt": "a", "scheduler": "huen"}, "unknown scheduler 'huen': this bundle has"),
        ({"prompt": "a", "scheduler": ["ddim"]}, r"unknown scheduler \['ddim'\]"),
        ({"prompt": "a", "guidance_scale": {}}, "guidance_scale must be a number, got {}"),
        ({"prompt": "a", "width": 17}, "width 17 does not fit"),
        ({"prompt": "a", "seed": -1}, "seed must be 0 to"),
        ({"prompt": "\ud800"}, "a text in it is not valid Unicode"),
        ({"prompt": "a", "fps": 9}, "fps 9 has no effect"),
        ({"prompt": "a", "strength": 0.5}, "strength 0.5 has no effect"),
        ({"prompt": "a", "image": "none.png"}, "image .*none.png does not exist"),
        ({"prompt": "a", "image": "../x.png"}, "is not in the folder"),
        ({"prompt": "a", "sp_interval": 3, "steps": 9, "gate_step": 8},
         "this bundle was built without the graphs that reuse self-attention"),
        ({"prompt": "x" * 70_000}, "it is longer than 64 KiB"),
    ],
)  # fmt: skip
def test_errors_name_file_and_line(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, line: Any, reason: str
) -> None:
    path = write_lines({"prompt": "a"}, "", line, "{")
    with pytest.raises(InvalidRequestError, match=f"^{path}:3: .*{reason}") as caught:
        checked(settings, bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["x", "y", "x"], ":3: the id 'x' is that of line 1"),
        (["3", None, None], ":3: the id '3' is that of line 1"),
        ([3, "3"], ":2: the id '3' is that of line 1"),
    ],
)
def test_ids_are_there_once(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, lines: list[Any], reason: str
) -> None:
    write_lines(*({"prompt": "a", "id": identity} for identity in lines))
    with pytest.raises(InvalidRequestError, match=reason):
        checked(settings, bundle)


def test_hashes_of_ids_may_be_equal(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgate_export.bulk.prompt_file._hashed", lambda _: 5)
    write_lines({"prompt": "a", "id": "x"}, {"prompt": "a", "id": "y"})
    assert len(checked(settings, bundle).numbers) == 2
    write_lines({"prompt": "a", "id": "x"}, {"prompt": "a", "id": "y"}, {"prompt": "", "id": "y"})
    with pytest.raises(InvalidRequestError, match=":3: the id 'y' is that of line 2"):
        checked(settings, bundle)


def test_files_that_are_none(settings: BulkSettings, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot read .*: No such file"):
        checked(settings, bundle)
    with pytest.raises(InvalidRequestError, match="no regular file"):
        checked(replace(settings, prompts=tmp_path), bundle)
    os.mkfifo(settings.prompts)
    with pytest.raises(InvalidRequestError, match="no regular file"):
        checked(settings, bundle)
    settings.prompts.unlink()
    settings.prompts.write_text("\n\n")
    with pytest.raises(InvalidRequestError, match="has no prompts"):
        checked(settings, bundle)


def test_a_file_that_changes_is_noticed(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle
) -> None:
    path = write_lines({"prompt": "a"}, {"prompt": "b"})
    with PromptFile(settings, bundle.manifest) as file:
        index = file.check(bundle)
        file.line(2, index.offsets[1])
        with path.open("a") as stream:
            stream.write(json.dumps({"prompt": "c"}))
        with pytest.raises(TGateError, match="was changed while it was in use"):
            file.line(2, index.offsets[1])


def test_a_default_is_refused_before_a_line_is_blamed(
    settings: BulkSettings, bundle: Bundle
) -> None:
    for name, value, reason in (
        ("num_inference_steps", 0, "^steps must be at least 1, got 0"),
        ("width", 17, "^width 17 does not fit"),
        ("scheduler", "x", "^unknown scheduler 'x'"),
    ):
        with pytest.raises(InvalidRequestError, match=reason):
            check_defaults(replace(settings, defaults={name: value}), bundle.manifest)
    check_defaults(replace(settings, defaults={"num_inference_steps": 3}), bundle.manifest)


def test_pictures_are_looked_at_and_not_decoded(
    settings: BulkSettings,
    write_lines: WriteLines,
    bundle: Bundle,
    tmp_path: Path,
) -> None:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "x.png")
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(tmp_path / "low.png")
    write_lines({"prompt": "a", "image": "low.png"})
    with pytest.raises(InvalidRequestError, match=":1: height 8 does not fit"):
        checked(settings, bundle)
    write_lines({"prompt": "a", "image": "x.png"})
    with pytest.raises(InvalidRequestError, match=r":1: .*was built without image-to-image"):
        checked(settings, bundle)
