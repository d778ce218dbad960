"""What a client needs for a connection with TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgate_export.common.errors import InvalidRequestError, TGateError, first_line


@dataclass(frozen=True)
class Tls:
    """Files of PEM.

    Attributes:
        roots: certificates of those who may have signed the server's; None for those that gRPC
            brings, which are of the public web.
        certificate: the client's own, with those of its signers behind it, for a server that asks
            who calls,
        key: and its private key, not encrypted.
    """

    roots: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequestError("certificate and key belong together: give both or neither")

    def options(self) -> dict[str, Any]:
        """Return the arguments of tritonclient's `InferenceServerClient`.

        Raises:
            TGateError: a file is not there or not what it should be; gRPC would say so in its log
                alone, and call the server unreachable.
        """
        context = ssl.create_default_context()
        if self.roots is not None:
            with _named(self.roots):
                context.load_verify_locations(self.roots)
        if self.certificate is not None and self.key is not None:
            with _named(self.certificate, self.key):
                context.load_cert_chain(self.certificate, self.key, password="")
        files = {
            "root_certificates": self.roots,
            "certificate_chain": self.certificate,
            "private_key": self.key,
        }
        return {"ssl": True} | {name: str(file) for name, file in files.items() if file is not None}


@contextmanager
def _named(*files: str | Path) -> Iterator[None]:
    """Turn an error of the block into one that names the files it was about."""
    for file in files:
        if not Path(file).is_file():
            raise TGateError(f"{file} is not a file")
    try:
        yield
    except (OSError, ValueError) as error:  # ssl's are the first
        names = " and ".join(map(str, files))
        raise TGateError(f"{names} cannot be used for TLS: {first_line(error)}") from None
