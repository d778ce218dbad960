"""A bundle opens only when every file is the one that was built."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tgate_export.bundle.integrity import (
    bundle_files,
    open_bundle,
    read_manifest,
)
from tgate_export.common.errors import BundleError

Damage = Callable[[Path], Path]


def refused(bundle: Path, *, check_hashes: bool = True) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle, check_hashes=check_hashes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_built_bundle_opens(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert bundle.manifest.files.keys() == set(bundle_files(tiny_bundle))
    assert all(path.is_file() for path in map(bundle.file, bundle.manifest.files))


def change_byte(bundle: Path) -> Path:
    file = bundle / "graphs" / "denoiser.weights"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def truncate(bundle: Path) -> Path:
    file = bundle / "graphs" / "full.onnx"
    os.truncate(file, file.stat().st_size - 1)
    return file


def empty(bundle: Path) -> Path:
    file = bundle / "samplers" / "ddim.json"
    file.write_bytes(b"")
    return file


def remove(bundle: Path) -> Path:
    file = bundle / "tokenizer" / "tokenizer.json"
    file.unlink()
    return file


def add(bundle: Path) -> Path:
    file = bundle / "graphs" / "notes.txt"
    file.write_text("mine")
    return file


def link_outside(bundle: Path) -> Path:
    # The same content, so that only the link itself is wrong.
    file = bundle / "graphs" / "sampler.onnx"
    file.rename(bundle.parent / "elsewhere.onnx")
    file.symlink_to(bundle.parent / "elsewhere.onnx")
    return file


def link_to_itself(bundle: Path) -> Path:
    file = bundle / "graphs" / "sampler.onnx"
    file.unlink()
    file.symlink_to(file)
    return file


def folder_instead(bundle: Path) -> Path:
    file = bundle / "samplers" / "euler.json"
    file.unlink()
    file.mkdir()
    return file


def link_folder_outside(bundle: Path) -> Path:
    (bundle / "samplers").rename(bundle.parent / "samplers")
    (bundle / "samplers").symlink_to(bundle.parent / "samplers")
    return bundle / "samplers"


def add_dangling_link(bundle: Path) -> Path:
    file = bundle / "nowhere"
    file.symlink_to(bundle / "nothing")
    return file


BYSTANDERS = (".DS_Store", "graphs/.DS_Store", "plans/.DS_Store", "README.md", "LICENSE",
              ".gitattributes", ".gitignore", ".git/config", ".cache/huggingface/download/x.lock",
              "samplers/Thumbs.db", "desktop.ini")  # fmt: skip


def add_bystanders(bundle: Path) -> None:
    """Add what hubs, version control and file managers leave in folders."""
    for name in BYSTANDERS:
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("x")


def test_what_others_put_into_folders_is_let_be(tiny_bundle_copy: Path) -> None:
    add_bystanders(tiny_bundle_copy)
    open_bundle(tiny_bundle_copy)


@pytest.mark.parametrize("name", ["x.md", "graphs/README.md", "graphs/.cache/x", "README.md.onnx"])
def test_what_looks_like_it_is_not(tiny_bundle_copy: Path, name: str) -> None:
    (tiny_bundle_copy / name).parent.mkdir(exist_ok=True)
    (tiny_bundle_copy / name).write_text("x")
    with pytest.raises(BundleError, match=f"{re.escape(name)} does not belong to the bundle"):
        open_bundle(tiny_bundle_copy)


def test_a_snapshot_of_the_hub(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its files are links to ../../blobs: refused with the way out, which works."""
    snapshot, blobs = tmp_path / "snapshots" / "0" / "tiny", tmp_path / "blobs"
    blobs.mkdir()
    for index, file in enumerate(path for path in tiny_bundle.rglob("*") if path.is_file()):
        shutil.copy(file, blobs / str(index))
        link = snapshot / file.relative_to(tiny_bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(index), link.parent))
    with pytest.raises(BundleError, match=r"hub's cache: copy the folder with `cp -rL`, or down"):
        open_bundle(snapshot)
    shutil.copytree(snapshot, tmp_path / "copy", symlinks=False)
    open_bundle(tmp_path / "copy")


SEEN_BY_SIZE: list[tuple[Damage, str]] = [
    (truncate, "bytes"),
    (empty, "0 bytes"),
    (remove, "missing"),
    (add, "does not belong"),
    (link_outside, "leaves the bundle"),
    (link_to_itself, "cannot be read"),
    (folder_instead, "missing"),
    (link_folder_outside, "leaves the bundle"),
    (add_dangling_link, "does not belong"),
]


@pytest.mark.parametrize(("damage", "reason"), [*SEEN_BY_SIZE, (change_byte, "sha256 differs")])
def test_damage_is_named(tiny_bundle_copy: Path, damage: Damage, reason: str) -> None:
    file = damage(tiny_bundle_copy)
    message = refused(tiny_bundle_copy)
    assert str(file) in message
    assert reason in message


@pytest.mark.parametrize(("damage", "reason"), SEEN_BY_SIZE)
def test_damage_is_named_without_hashing(
    tiny_bundle_copy: Path, damage: Damage, reason: str
) -> None:
    file = damage(tiny_bundle_copy)
    message = refused(tiny_bundle_copy, check_hashes=False)
    assert str(file) in message
    assert reason in message


@pytest.mark.parametrize("place", ["graphs", ".", "nowhere"])
@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_special_files_are_refused(tiny_bundle_copy: Path, place: str, kind: str) -> None:
    (folder := tiny_bundle_copy / place).mkdir(exist_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / "x")
    elif kind == "device":
        try:
            os.mknod(folder / "x", stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("devices are made by root")
    else:
        listener = socket.socket(socket.AF_UNIX)
        here = os.open(folder, os.O_RDONLY)
        try:  # by a short name: the path of a socket has at most 107 bytes
            listener.bind(f"/proc/self/fd/{here}/x")
        finally:
            listener.close()
            os.close(here)
    assert f"{folder / 'x'} does not belong to the bundle" in refused(tiny_bundle_copy)


@pytest.mark.parametrize("name", ["manifest.json", "plans/x/plans.json"])
@pytest.mark.parametrize("target", [None, "/dev/zero"])
def test_records_that_never_end(tiny_bundle_copy: Path, name: str, target: str | None) -> None:
    file = tiny_bundle_copy / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    if target is None:
        os.mkfifo(file)  # opening it would wait for somebody to write
    else:
        file.symlink_to(target)
    message = refused(tiny_bundle_copy)
    assert "is no regular file" in message or "it is a link" in message


def test_a_manifest_of_any_size(tiny_bundle_copy: Path) -> None:
    os.truncate(tiny_bundle_copy / "manifest.json", 10 * 2**30)  # takes no space
    assert "it has more than 4 MiB" in refused(tiny_bundle_copy)


@pytest.mark.parametrize("name", ["plans", "plans/set", "plans/.set.building-x"])
def test_links_in_place_of_plans(tiny_bundle_copy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    (tiny_bundle_copy / name).parent.mkdir(exist_ok=True)
    (tiny_bundle_copy / name).symlink_to(tmp_path / "home")
    assert f"{tiny_bundle_copy / name} does not belong" in refused(tiny_bundle_copy)


@pytest.mark.parametrize("name", ["plans", "plans/run.sh", "plans/.run.sh"])
def test_files_among_plans(tiny_bundle_copy: Path, name: str) -> None:
    (tiny_bundle_copy / name).parent.mkdir(exist_ok=True)
    (tiny_bundle_copy / name).write_text("#!")
    assert f"{tiny_bundle_copy / name} does not belong" in refused(tiny_bundle_copy)


def test_a_hidden_folder_among_plans(tiny_bundle_copy: Path) -> None:
    (tiny_bundle_copy / "plans" / ".set.building-x").mkdir(parents=True)
    open_bundle(tiny_bundle_copy)  # of a build that is running
    (tiny_bundle_copy / "plans" / ".x").mkdir()
    assert f"{tiny_bundle_copy / 'plans' / '.x'} does not belong" in refused(tiny_bundle_copy)


def test_names_do_not_reach_the_terminal_as_they_are(tiny_bundle_copy: Path) -> None:
    (tiny_bundle_copy / "\x1b[2J\nALL CHECKS PASSED\x1b[8m").write_text("")
    message = refused(tiny_bundle_copy)
    assert message.isprintable()
    assert "\\x1b[2J" in message


def test_missing_manifest(tiny_bundle_copy: Path) -> None:
    (tiny_bundle_copy / "manifest.json").unlink()
    assert "has no manifest.json" in refused(tiny_bundle_copy)


def test_missing_folder(tmp_path: Path) -> None:
    message = refused(tmp_path / "nothing")
    assert "no such folder" in message
    assert "make one with `build_bundle`" in message


def test_file_instead_of_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    assert "is not a bundle" in refused(tmp_path / "x.onnx")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"{", b""])
def test_manifest_that_is_no_text(tiny_bundle_copy: Path, content: bytes) -> None:
    (tiny_bundle_copy / "manifest.json").write_bytes(content)
    assert str(tiny_bundle_copy / "manifest.json") in refused(tiny_bundle_copy)


def test_manifest_that_is_a_folder(tiny_bundle_copy: Path) -> None:
    (tiny_bundle_copy / "manifest.json").unlink()
    (tiny_bundle_copy / "manifest.json").mkdir()
    assert "cannot read" in refused(tiny_bundle_copy)


def test_bundle_behind_a_link_is_fine(tiny_bundle_copy: Path) -> None:
    link = tiny_bundle_copy.parent / "link"
    link.symlink_to(tiny_bundle_copy)
    open_bundle(link)


def test_what_is_no_plan_set_is_refused(tiny_bundle_copy: Path) -> None:
    (tiny_bundle_copy / "plans" / "a").mkdir(parents=True)
    (tiny_bundle_copy / "plans" / "a" / "full.plan").write_bytes(b"engine")
    assert "plans.json is missing" in refused(tiny_bundle_copy)


def test_manifest_is_read_without_the_files(tiny_bundle_copy: Path) -> None:
    remove(tiny_bundle_copy)
    assert read_manifest(tiny_bundle_copy).name == "tiny"
