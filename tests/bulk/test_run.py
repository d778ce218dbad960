"""Bulk runs in this process: every line's image, once, whatever happens between."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import CPU_BACKENDS
from tests.support import tiny
from tests.support.hostile import full_disk
from tests.support.once import made_once
from tgate_export import TGatePipeline
from tgate_export.build.build import build_bundle
from tgate_export.bulk import worker
from tgate_export.bulk.local import LocalRunner
from tgate_export.bulk.run import GIVE_UP, Tally, run_bulk
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.manifest import Range
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.families.stable_video_diffusion.tiny import FRAMES

WriteLines = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture
def settings(settings: BulkSettings, tiny_bundle: Path) -> BulkSettings:
    return replace(
        settings, bundle=tiny_bundle, backend="onnxruntime:cpu",
        defaults={"num_inference_steps": 3, "gate_step": 2},
    )  # fmt: skip


def mixed(count: int) -> list[dict[str, Any]]:
    """Lines that differ in what decides which images share a call."""
    lines: list[dict[str, Any]] = []
    for index in range(count):
        steps = 2 + index % 5
        line = {"prompt": f"a {index}", "steps": steps, "gate_step": 1 + index % steps}
        line |= {"negative_prompt": "b"} if index % 3 == 0 else {}
        line |= {"guidance_scale": 1.0} if index % 4 == 0 else {}
        line |= {"scheduler": "euler-a"} if index % 7 == 0 else {}
        line |= {"seed": 7} if index % 6 == 0 else {}
        lines.append(line)
    return lines


def made(
    settings: BulkSettings, bundle: Bundle, report: Callable[[Tally], None] = lambda _: None
) -> Tally:
    return run_bulk(settings, bundle, LocalRunner(), report)


def entries(out: Path, name: str = "images.jsonl") -> dict[int, dict[str, Any]]:
    """What the folder says of each line; none is there twice."""
    found = [json.loads(text) for text in (out / name).read_text().splitlines()]
    by_line = {entry["line"]: entry for entry in found}
    assert len(by_line) == len(found)
    return by_line


def hashes(out: Path) -> dict[str, str]:
    return {
        file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (out / "images").rglob("*.*")
    }


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_line_is_the_pipelines_picture(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, backend: str
) -> None:
    pytest.importorskip(backend.partition(":")[0])
    settings = replace(settings, backend=backend)
    lines = mixed(20)
    write_lines(*lines[:9], "", *lines[9:])
    tally = made(settings, bundle)
    assert (tally.lines, tally.before, tally.made, tally.failed) == (20, 0, 20, 0)
    found = entries(settings.out)
    numbers = [*range(1, 10), *range(11, 22)]
    assert sorted(found) == numbers
    assert hashes(settings.out) == {entry["file"]: entry["sha256"] for entry in found.values()}
    pipeline = TGatePipeline.from_bundle(bundle.path, backend)
    pictures = []
    for number, line in zip(numbers, lines, strict=True):
        seed = line.get("seed", 100 + number)
        named = {"steps": "num_inference_steps"}
        call = {named.get(name, name): value for name, value in line.items()}
        output = pipeline(**(call | {"seed": seed}))
        picture = np.asarray(output.images[0]).astype(int)
        entry = found[number]
        assert entry["file"] == f"images/000/{number:06d}.png"
        assert (entry["id"], entry["seed"], entry["prompt"]) == (number, seed, line["prompt"])
        assert entry["parameters"]["num_inference_steps"] == line["steps"]
        assert entry["parameters"].keys() == bundle.manifest.parameters.keys()
        assert entry["seconds"] > 0
        # Rounding of batched kernels, which can tip a pixel over to the next level.
        assert np.abs(pixels(settings.out / entry["file"]) - picture).max() <= 1
        pictures.append(picture)
    for index, picture in enumerate(pictures):
        others = [other for at, other in enumerate(pictures) if at != index]
        assert min(np.abs(other - picture).max() for other in others) > 3


def test_what_shares_a_batch_changes_no_byte(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, cpu_backend: str
) -> None:
    """The same lines all at once, and one at a time in other company."""
    settings = replace(settings, backend=cpu_backend)
    lines = mixed(17)
    write_lines(*lines)
    made(settings, bundle)
    expected = hashes(settings.out)
    assert len(set(expected.values())) == 17
    for name, alone in expected.items():
        number = int(Path(name).stem)
        if number % 8 == 1:
            other = replace(settings, out=settings.out.with_name(f"alone {number}"))
            write_lines(*("" if at != number else line for at, line in enumerate(lines, start=1)))
            made(other, bundle)
            assert hashes(other.out) == {name: alone}


class StoppedError(Exception):
    pass


def stop_after(count: int) -> Callable[[Tally], None]:
    def report(tally: Tally) -> None:
        if tally.made == count:
            raise StoppedError

    return report


def test_a_run_that_is_stopped_goes_on(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle
) -> None:
    write_lines(*mixed(30))
    whole = replace(settings, out=settings.out.with_name("whole"))
    made(whole, bundle)
    for count in (1, 5, 11):
        with pytest.raises(StoppedError):
            made(settings, bundle, stop_after(count))
        entries(settings.out)
    assert len(entries(settings.out)) == 17
    with (settings.out / "images.jsonl").open("a") as stream:
        stream.write('{"line": 1')
    before = entries_of_whole_lines(settings.out)
    tally = made(settings, bundle)
    assert (tally.before, tally.made) == (17, 13)
    assert hashes(settings.out) == hashes(whole.out)
    after = entries(settings.out)
    assert {line: after[line] for line in before} == before
    assert sorted(after) == list(range(1, 31))
    assert sorted(os.listdir(settings.out)) == ["images", "images.jsonl", "run.json"]
    tally = made(settings, bundle)  # nothing is left to do
    assert (tally.before, tally.made) == (30, 0)
    assert entries(settings.out) == after


def entries_of_whole_lines(out: Path) -> dict[int, dict[str, Any]]:
    text, _, torn = (out / "images.jsonl").read_text().rpartition("\n")
    assert torn
    return {entry["line"]: entry for entry in map(json.loads, text.splitlines())}


def test_a_picture_that_is_deleted_is_made_again(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle
) -> None:
    write_lines(*mixed(5))
    made(settings, bundle)
    before = hashes(settings.out)
    (settings.out / "images/000/000003.png").unlink()
    assert made(settings, bundle).made == 1
    assert hashes(settings.out) == before
    assert sorted(entries(settings.out)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 101}, "seed 100, now 101"),
        ({"kind": "JPEG"}, "format PNG, now JPEG"),
        ({"max_batch": 4}, "max_batch 8, now 4"),
        ({"defaults": {"num_inference_steps": 4}},
         "num_inference_steps 3, now 4, gate_step 2, now the default"),
    ],
)  # fmt: skip
def test_a_folder_stays_what_it_was_made_with(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, changes: dict[str, Any],
    reason: str,
) -> None:  # fmt: skip
    write_lines({"prompt": "a"})
    made(settings, bundle)
    before = hashes(settings.out)
    message = f"{settings.out} was made with {reason}: give the same to go on there, or name anoth"
    with pytest.raises(InvalidRequestError, match=message):
        made(replace(settings, **changes), bundle)
    assert hashes(settings.out) == before
    assert made(replace(settings, backend="auto"), bundle).backend == "onnxruntime:cpu"


def test_other_prompts_or_another_bundle(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, tiny_bundle_copy: Path
) -> None:
    write_lines({"prompt": "a"})
    made(settings, bundle)
    (tiny_bundle_copy / "manifest.json").write_text(bundle.manifest.to_json().replace(" ", "  ", 1))
    other = replace(settings, bundle=tiny_bundle_copy)
    with pytest.raises(InvalidRequestError, match="was made with another bundle: give"):
        made(other, open_bundle(tiny_bundle_copy))
    write_lines({"prompt": "b"})
    with pytest.raises(InvalidRequestError, match="was made with another file of prompts: give"):
        made(settings, bundle)


def test_other_versions_are_said(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle
) -> None:
    write_lines({"prompt": "a"})
    made(settings, bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(settings, bundle)
    record = json.loads((settings.out / "run.json").read_text())
    record["versions"]["pillow"] = "1.0"
    (settings.out / "run.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"was begun with pillow 1\.0, now "):
        made(settings, bundle)


def test_a_folder_of_something_else(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle
) -> None:
    write_lines({"prompt": "a"})
    settings.out.mkdir()
    (settings.out / "holiday.png").touch()
    with pytest.raises(InvalidRequestError, match=r"has files and no run\.json"):
        made(settings, bundle)
    assert os.listdir(settings.out) == ["holiday.png"]


def test_nothing_is_made_when_a_line_is_wrong(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle
) -> None:
    write_lines({"prompt": "a"}, {"prompt": "a", "steps": 0})
    with pytest.raises(InvalidRequestError, match=r"prompts\.jsonl:2: steps must be"):
        made(settings, bundle)
    assert not settings.out.exists()


def failing(monkeypatch: pytest.MonkeyPatch, *prompts: str) -> None:
    """Let pictures of some prompts fail where they are made into files."""
    encode = worker.encode_picture

    def fail(image: Any, kind: str, manifest: Any, request: Any, index: int) -> bytes:
        if request.prompts[0] in prompts:
            raise OSError("no luck")
        return encode(image, kind, manifest, request, index)

    monkeypatch.setattr(worker, "encode_picture", fail)


def test_a_line_that_fails_is_written_down_and_tried_again(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(*mixed(12))
    with monkeypatch.context() as patch:
        failing(patch, "a 3", "a 10")
        tally = made(settings, bundle)
    assert (tally.made, tally.failed, tally.left) == (10, 2, 0)
    failures = entries(settings.out, "failures.jsonl")
    assert {line: entry["error"] for line, entry in failures.items()} == {
        4: "OSError: no luck", 11: "OSError: no luck",
    }  # fmt: skip
    assert not failures.keys() & entries(settings.out).keys()
    tally = made(settings, bundle)
    assert (tally.before, tally.made, tally.failed) == (10, 2, 0)
    assert not (settings.out / "failures.jsonl").exists()


def test_a_run_in_which_all_fails_ends(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = GIVE_UP + 50
    write_lines(*({"prompt": "a", "steps": 1} for _ in range(count)))
    failing(monkeypatch, "a")
    with pytest.raises(TGateError, match=f"^{GIVE_UP} lines in a row failed, .*: OSError: no luck"):
        made(settings, bundle)
    assert len(entries(settings.out, "failures.jsonl")) == GIVE_UP


def test_a_full_disk_ends_the_run_and_another_goes_on(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle
) -> None:
    write_lines(*mixed(12))
    made(replace(settings, out=settings.out.with_name("whole")), bundle)

    def fill(tally: Tally) -> None:
        if tally.made == 2:
            full.__enter__()

    full = full_disk()
    try:
        with pytest.raises(TGateError, match=r"cannot write .*: File too large: what is done stay"):
            made(settings, bundle, fill)
    finally:
        full.__exit__(None, None, None)
    assert len(entries(settings.out)) == 2
    made(settings, bundle)
    assert hashes(settings.out) == hashes(settings.out.with_name("whole"))


def test_few_lines_are_in_hand(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are read as others end: a file may have millions."""
    write_lines(*({"prompt": "a", "steps": 1} for _ in range(300)))
    started = ended = most = 0
    start = worker.Worker.start

    def count(self: worker.Worker, line: Any, deliver: Any) -> None:
        nonlocal started, most
        started += 1
        most = max(most, started - ended)
        assert started - ended <= self.window
        start(self, line, deliver)

    def report(tally: Tally) -> None:
        nonlocal ended
        ended = tally.made

    monkeypatch.setattr(worker.Worker, "start", count)
    made(settings, bundle, report)
    assert 8 < most <= 6 * 8


def test_long_prompts_are_warned_of(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle
) -> None:
    write_lines({"prompt": "f" * 74 + " x left out"}, {"prompt": "a"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made(settings, bundle).warned == 1
    found = entries(settings.out)
    assert "left out" in found[1]["warnings"][0]
    assert "warnings" not in found[2]


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("WEBP", "webp")])
def test_other_formats(
    settings: BulkSettings, write_lines: WriteLines, bundle: Bundle, kind: str, suffix: str
) -> None:
    write_lines({"prompt": "a"})
    made(replace(settings, kind=kind), bundle)
    file = settings.out / f"images/000/000001.{suffix}"
    assert Image.open(file).format == kind
    assert entries(settings.out)[1]["file"] == f"images/000/000001.{suffix}"


def test_lines_begin_with_pictures(
    settings: BulkSettings, write_lines: WriteLines, image_bundle: Path, tmp_path: Path
) -> None:
    """Of lines with a picture that cannot be decoded, which is found out late, that one fails."""
    settings = replace(settings, bundle=image_bundle)
    random = np.random.default_rng(0)
    for name in ("x", "y"):
        picture = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    content = (tmp_path / "y.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(content[: len(content) // 2])
    write_lines(
        {"prompt": "a"}, {"prompt": "a", "image": "x.png", "strength": 1.0},
        {"prompt": "a", "image": "torn.png"}, {"prompt": "a", "image": "y.png"},
    )  # fmt: skip
    bundle = open_bundle(image_bundle)
    tally = made(settings, bundle)
    assert (tally.made, tally.failed) == (3, 1)
    failures = entries(settings.out, "failures.jsonl")
    assert "torn.png cannot be read" in failures[3]["error"]
    pipeline = TGatePipeline.from_bundle(image_bundle, "onnxruntime:cpu")
    for number, image, strength in ((2, "x", 1.0), (4, "y", None)):
        output = pipeline(
            "a", seed=100 + number, image=tmp_path / f"{image}.png", strength=strength,
            num_inference_steps=3, gate_step=2,
        )  # fmt: skip
        expected = np.asarray(output.images[0]).astype(int)
        found = pixels(settings.out / f"images/000/{number:06d}.png")
        assert np.abs(found - expected).max() <= 1


def test_a_default_strength_needs_no_default_picture(
    settings: BulkSettings, write_lines: WriteLines, image_bundle: Path, tmp_path: Path
) -> None:
    settings = replace(settings, bundle=image_bundle, defaults={"strength": 0.5})
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "x.png")
    write_lines({"prompt": "a", "image": "x.png", "steps": 4})
    assert made(settings, open_bundle(image_bundle)).made == 1
    with pytest.raises(InvalidRequestError, match=r"^strength must be"):
        made(replace(settings, defaults={"strength": 2}), open_bundle(image_bundle))


@pytest.fixture(scope="module")
def video_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_once(tmp_path_factory, "pipelines/svd", lambda out: tiny.save("svd", out))
    width, height, two = (Range(min=n, opt=n, max=n) for n in (16, 8, 2))
    return made_once(
        tmp_path_factory, "bundles/svd",
        lambda out: build_bundle(
            str(folder), size=(width, height), batch=two, sp_interval=2, fi_interval=2, warm_up=1,
            out=out,
        ),
    )  # fmt: skip


def test_videos(
    settings: BulkSettings, write_lines: WriteLines, video_bundle: Path, tmp_path: Path
) -> None:
    """A bundle of batches of two: three lines need two of them."""
    settings = replace(settings, bundle=video_bundle, kind="WEBP", defaults={})
    random = np.random.default_rng(0)
    for name in ("1", "2", "3"):
        picture = random.integers(0, 256, (8, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    write_lines(*({"image": f"{name}.png", "steps": 2, "gate_step": 1} for name in "123"))
    assert made(settings, open_bundle(video_bundle)).made == 3
    with Image.open(settings.out / "images/000/000002.webp") as video:
        assert video.n_frames == FRAMES
    assert len(set(hashes(settings.out).values())) == 3
