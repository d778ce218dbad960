"""Certificates for a test of TLS, made by OpenSSL's program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


class Authority:
    """Signs certificates; everything lies in its folder as PEM.

    Attributes:
        roots: its own certificate.
    """

    def __init__(self, folder: Path, name: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        self._folder = folder
        self._name = name
        self.roots = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", "-nodes", "-days", "2", *_new_key(self._key),
                 "-subj", f"/CN={name}", "-out", self.roots)  # fmt: skip

    def sign(self, name: str, address: str = "") -> tuple[Path, Path]:
        """Return a new certificate and its key; it is of a server where there is an address."""
        certificate, key, asked = (
            self._folder / f"{self._name}-{name}.{end}" for end in ("pem", "key", "csr")
        )
        _openssl("req", "-nodes", *_new_key(key), "-subj", f"/CN={name}", "-out", asked)
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=IP:{address}\n" if address else "")
        _openssl("x509", "-req", "-in", asked, "-CA", self.roots, "-CAkey", self._key,
                 "-CAcreateserial", "-days", "2", "-extfile", extensions,
                 "-out", certificate)  # fmt: skip
        return certificate, key


def _new_key(file: Path) -> tuple[object, ...]:
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", file


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)
