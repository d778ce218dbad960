"""Write a model repository that a stock Triton Inference Server loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.store import replace_folder
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.common.hints import Argument
from tgate_export.embed.bundles import files_of, open_image_bundle
from tgate_export.embed.triton.interface import Port, inputs, outputs
from tgate_export.runtime.backends import check_backend

BUNDLE_FOLDER = "bundle"  # beside model.py
_MARK = "# Written by tgate-export."
_MODEL = '''"""Serves the bundle beside this file; see `tgate_export.embed.triton.model`."""

from tgate_export.embed.triton.model import TGateModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class ServingOptions:
    """What the model's configuration says beside its tensors.

    Attributes:
        backend: what runs graphs; see `TGatePipeline.from_bundle`.
        gpus: an instance for each of these; by default for each that the server has, or one on
            the CPU.
        execution_env: Python environment of the model: a folder or an archive that conda-pack
            wrote; may begin with $$TRITON_MODEL_DIRECTORY. By default that of the server.
        max_batch: see `BatchingOptions`.
        max_in_flight: see `BatchingOptions`.
        max_pending: see `BatchingOptions`.
        call_target: in seconds; see `BatchingOptions`.
        max_images: of one request.
    """

    backend: str = "auto"
    gpus: Sequence[int] = ()
    execution_env: str | None = None
    max_batch: int | None = None
    max_in_flight: int | None = None
    max_pending: int = 128
    call_target: float | None = None
    max_images: int = 64

    def parameters(self) -> dict[str, str]:
        """Return the model's parameters; what is None is left out."""
        values = {
            "backend": self.backend,
            "max_batch": self.max_batch,
            "max_in_flight": self.max_in_flight,
            "max_pending": self.max_pending,
            "call_target": self.call_target,
            "max_images": self.max_images,
            "EXECUTION_ENV_PATH": self.execution_env,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


def write_repository(
    bundle: str | Path,
    out: Path,
    options: ServingOptions | None = None,
    *,
    name: str | None = None,
    copy: bool = False,
) -> Path:
    """Write a bundle's model into a repository, and return the model's folder.

    A model that this wrote before is replaced; other models stay as they are.

    Args:
        bundle: an intact bundle.
        out: the repository's folder; made when it does not exist.
        options: see `ServingOptions`.
        name: of the model; the bundle's by default.
        copy: copy the bundle's files, instead of linking those that can be: a bundle is never
            changed in place, so a hard link is as good.

    Raises:
        BundleError: the bundle is damaged.
        InvalidRequestError: an option that cannot be served.
        TGateError: something else is in the way.
    """
    options = options or ServingOptions()
    opened = open_image_bundle(bundle)
    _check(opened, options)
    model = out / (opened.manifest.name if name is None else name)
    if model.parent != out or model.name in ("", ".", ".."):
        raise InvalidRequestError(f"the model's name {name!r} is not the name of a folder")
    _check_replaceable(model)
    with replace_folder(model) as staging:
        version = staging / "1"
        version.mkdir()
        (version / "model.py").write_text(_MODEL, encoding="utf-8")
        (staging / "config.pbtxt").write_text(
            model_config(model.name, opened, options), encoding="utf-8"
        )
        _place(opened, version / BUNDLE_FOLDER, copy=copy)
    return model


def bundle_of(model: Path, version: str) -> Path:
    """Return the folder of the bundle that a version of a model serves.

    Raises:
        TGateError: it is a link that leaves the model's folder.
    """
    bundle = model / version / BUNDLE_FOLDER
    if not bundle.resolve().is_relative_to(model.resolve()):
        raise TGateError(f"{bundle} is a link that leaves the repository: copy the bundle into it")
    return bundle


def model_config(name: str, bundle: Bundle, options: ServingOptions) -> str:
    """Return the text of `config.pbtxt`."""
    manifest = bundle.manifest
    lines = [
        f"{_MARK} Parameters may be changed; the tensors belong to the bundle.",
        f"name: {_quoted(name)}",
        'backend: "python"',
        "# Requests share engine calls step by step, so the server is not to batch them.",
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        *_instance_group(options.gpus),
    ]
    lines += [f"input {{ {_port(port)} optional: true }}" for port in inputs(manifest)]
    lines += [f"output {{ {_port(port)} }}" for port in outputs(manifest)]
    lines += _parameters(options.parameters())
    return "\n".join(lines) + "\n"


def _instance_group(gpus: Iterable[int]) -> list[str]:
    listed = list(gpus)
    if not listed:
        return ["instance_group { count: 1 kind: KIND_AUTO }"]
    return [f"instance_group {{ count: 1 kind: KIND_GPU gpus: [ {gpu} ] }}" for gpu in listed]


def _parameters(parameters: Mapping[str, str]) -> list[str]:
    return [
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in parameters.items()
    ]


def _port(port: Port) -> str:
    dims = ", ".join(map(str, port.dims))
    return f"name: {_quoted(port.name)} data_type: TYPE_{port.type} dims: [ {dims} ]"


def _quoted(text: str) -> str:
    """Write a string of protobuf's text format: every byte that is not plain is escaped."""
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{"".join(plain)}"'


def _check(bundle: Bundle, options: ServingOptions) -> None:
    check_backend(options.backend)
    largest = bundle.manifest.batch.max
    if options.max_batch is not None and not 1 <= options.max_batch <= largest:
        raise InvalidRequestError(
            f"max_batch must be 1 to {largest}, which the bundle was built for, "
            f"got {options.max_batch}"
        )
    for name in ("max_in_flight", "max_pending", "call_target", "max_images"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InvalidRequestError(f"{name} must be above 0, got {value}")
    env = options.execution_env
    if env is not None and not env.startswith(("/", "$$TRITON_MODEL_DIRECTORY/")):
        raise InvalidRequestError(
            f"execution environment {env!r} must be an absolute path, or begin with "
            "$$TRITON_MODEL_DIRECTORY/"
        )


def _check_replaceable(model: Path) -> None:
    if not model.exists() and not model.is_symlink():
        return
    config = model / "config.pbtxt"
    if model.is_symlink() or not config.is_file():
        raise TGateError(
            f"{model} is not a model of this program",
            "choose another ",
            Argument("out"),
            " or ",
            Argument("name"),
        )
    if not config.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        raise TGateError(
            f"{config} was not written by this program", "choose another ", Argument("name")
        )


def _place(bundle: Bundle, target: Path, *, copy: bool) -> None:
    """Put a bundle's files into a folder as hard links, or as copies where those cannot be."""
    for relative in files_of(bundle):
        file, destination = bundle.file(relative), target / relative
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not copy:
            try:
                os.link(os.path.realpath(file), destination)
            except OSError:  # another file system, or one without links
                pass
            else:
                continue
        shutil.copy2(file, destination)
