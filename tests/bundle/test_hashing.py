"""Hashes against published values."""

from __future__ import annotations

from pathlib import Path

from tgate_export.bundle.hashing import hash_file, hash_files


def test_hash_of_known_content(tmp_path: Path) -> None:
    # FIPS 180-2's example for "abc", and the empty file.
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "long").write_bytes(b"x" * (3 * (1 << 20) + 1))  # several chunks
    abc = hash_file(tmp_path / "abc")
    assert (abc.bytes, abc.sha256) == (
        3,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    )
    both = dict(hash_files(tmp_path, ["empty", "abc", "long"]))
    assert list(both) == ["empty", "abc", "long"]
    assert both["abc"] == abc
    assert both["empty"].sha256.startswith("e3b0c44298fc1c14")
    assert both["long"].bytes == 3 * (1 << 20) + 1
