"""Compiling the C++ library, and a driver that answers requests in JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError
from tgate_export.embed.cpp_project import onnxruntime_library, openvino_cmake
from tgate_export.runtime.backends.base import BackendError

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "embed-cpp"
HEADERS = ROOT / "build" / "onnxruntime-dev"
PACKAGES = ("nlohmann-json3-dev", "libpng-dev", "libssl-dev", "libicu-dev")


@dataclass(frozen=True)
class CppBuild:
    """What was compiled."""

    generate: Path
    driver: Path
    threads: Path


@dataclass(frozen=True)
class Refusal:
    """An error of the library; its words are its own."""

    kind: str
    field: str
    text: str


# The kinds of the library's errors, by Python's.
KINDS: dict[type[TGateError], str] = {
    InvalidRequestError: "request",
    BackendError: "backend",
    BundleError: "bundle",
    TGateError: "file",
}


def assert_alike(found: Refusal, expected: TGateError) -> None:
    """Check that an error of the library is of the kind and of the field of Python's.

    Where Python names no field the library may; of a fault in an origin or in an entry of the table
    of parameters the path of that is enough, as libraries differ in how they look inside.
    """
    kind = next(name for cls, name in KINDS.items() if isinstance(expected, cls))
    assert (found.kind, _known(found.field)) == (
        kind, _known(expected.field) if expected.field else _known(found.field)
    ), (found.text, str(expected))  # fmt: skip


def _known(field: str) -> str:
    origin = re.match(r"graphs\..*?\.inputs\.\d+\.from", field)
    if origin:
        return origin[0]
    parts = field.split(".")
    return ".".join(parts[:2]) if parts[0] == "parameters" else field


class Driver:
    """A process that runs the library's functions; see cpp/driver.cpp."""

    def __init__(self, program: Path, cwd: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", cwd=cwd
        )

    def __call__(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Return the reply; a crash of the library, or an exception of another kind, fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"op": op, **arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the driver ended with {self._process.wait()}"
        reply: dict[str, Any] = json.loads(line)
        assert "crash" not in reply, reply["crash"]
        return reply

    def refusal(self, op: str, **arguments: Any) -> Refusal:
        """Return the error that a request must end with."""
        reply = self(op, **arguments)
        assert reply.keys() == {"error", "field", "kind"}, reply
        assert "\n" not in reply["error"]
        return Refusal(reply["kind"], reply["field"], reply["error"])

    def error(self, op: str, **arguments: Any) -> str:
        """Return the text of the error that a request must end with."""
        return self.refusal(op, **arguments).text

    def close(self) -> None:
        """End the process, which must end well."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=30) == 0


def header_folder() -> Path | None:
    """Return the folder of ONNX Runtime's header; None where CMake finds it by itself."""
    for folder in (Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime")):
        if folder.is_dir():
            return None
    run = subprocess.run(
        [ROOT / "scripts" / "cpp_headers", HEADERS], capture_output=True, text=True, check=False
    )
    if run.returncode:
        reason = run.stderr.strip().splitlines()[-1:] or ["no reason given"]
        pytest.skip(f"ONNX Runtime's C header cannot be had: {reason[0]}")
    return Path(run.stdout.strip())


def configure(source: Path, build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    folder = header_folder()
    include = [f"-DONNXRUNTIME_INCLUDE_DIR={folder}"] if folder else []
    library = f"-DTGATE_ONNXRUNTIME_LIBRARY={onnxruntime_library()}"
    openvino = f"-DOpenVINO_DIR={openvino_cmake()}"
    command = ["cmake", "-S", source, "-B", build, library, openvino, *include, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def require_tools() -> None:
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install cmake g++")


def compile_library(build: Path = BUILD, *options: str) -> CppBuild:
    """Compile the library, its example and the driver with every warning an error."""
    require_tools()
    # -O1 compiles in half the time of -O3.
    configured = configure(
        ROOT / "tests" / "embed" / "cpp", build,
        "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", *options,
    )  # fmt: skip
    if "Missing libraries" in configured.stderr:
        pytest.skip(f"apt-get install {' '.join(PACKAGES)}")
    assert configured.returncode == 0, configured.stderr
    for backend in ("onnxruntime", "openvino"):
        assert f"Backend {backend}: yes" in configured.stdout
    jobs = str(len(os.sched_getaffinity(0)))
    built = subprocess.run(
        ["cmake", "--build", build, "--parallel", jobs], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    return CppBuild(build / "tgate" / "tgate_generate", build / "driver", build / "threads")
