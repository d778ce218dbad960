"""Start the `tritonserver` of the nvidia-pytriton wheel on a model repository, without a GPU.

The wheel has the server, its Python backend and nothing else; its numpy is older than ours, so it
gets a virtual environment of its own. usage: scripts/triton_server.py REPOSITORY
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-triton"
REQUIREMENTS = ROOT / "scripts" / "triton_requirements.txt"


def server_venv() -> Path:
    """Return the environment with the server, this package and its CPU runtime; made once.

    Raises:
        RuntimeError: says why it cannot be installed.
    """
    wanted = str(zlib.crc32(REQUIREMENTS.read_bytes() + (ROOT / "pyproject.toml").read_bytes()))
    stamp = VENV / "installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return VENV
    python = [str(VENV / "bin/python"), "-P", "-m"]
    pip = [*python, "pip", "install", "-q", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-P", "-m", "venv", str(VENV)],
        [*pip, "-r", str(REQUIREMENTS), "-e", f"{ROOT}[cpu]"],
    ):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            lines = run.stderr.strip().splitlines() or ["no message"]
            raise RuntimeError(f"nvidia-pytriton cannot be installed: {lines[-1]}")
    stamp.write_text(wanted)
    return VENV


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for entry in sockets:
        entry.bind(("127.0.0.1", 0))
    ports = [entry.getsockname()[1] for entry in sockets]
    for entry in sockets:
        entry.close()
    return ports


class Server:
    """A running server; ends with the block.

    Attributes:
        http: `host:port`; as the two below.
        grpc: the same.
        metrics: the same.
        process: of `tritonserver`.
        log: its output.
        ready_seconds: from start to ready.
    """

    def __init__(self, repository: Path, *options: str, venv: Path | None = None) -> None:
        venv = venv or server_venv()
        package = next(venv.glob("lib/python3.*/site-packages/pytriton/tritonserver"))
        python = package.parents[2].name.removeprefix("python")
        self._folder = tempfile.TemporaryDirectory(prefix="tritonserver-")
        folder = Path(self._folder.name)
        # The backend looks for its stub beside itself.
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        for file in (
            *(package / "backends" / "python").glob("*.*"),
            package / "python_backend_stubs" / python / "triton_python_backend_stub",
        ):
            (backend / file.name).symlink_to(file)
        ports = free_ports(3)
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{port}" for port in ports)
        self.log = folder / "log.txt"
        addresses = ("http", "grpc", "metrics")
        command = [
            str(package / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backend.parent}",
            *(f"--{name}-address=127.0.0.1" for name in addresses),
            *(f"--{name}-port={port}" for name, port in zip(addresses, ports, strict=True)),
            *options,
        ]
        environment = {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
        environment.pop("PYTHONPATH", None)
        self.started = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self.ready_seconds = 0.0

    def ready(self, seconds: float = 120.0) -> None:
        """Wait until every model is ready.

        Raises:
            RuntimeError: the server has ended, or is not ready in time; with the end of its log.
        """
        while time.monotonic() - self.started < seconds:
            if self.process.poll() is not None:
                break
            if self.get("/v2/health/ready") == 200:
                self.ready_seconds = time.monotonic() - self.started
                return
            time.sleep(0.05)
        raise RuntimeError(f"tritonserver is not ready:\n{self.log.read_text()[-3000:]}")

    def get(self, path: str) -> int:
        """Return the HTTP status of a path; 0 when nothing answers."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def read_metrics(self) -> dict[str, float]:
        """Return the server's metrics, by name with labels."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def events(self) -> list[dict[str, object]]:
        """Return the model's log, one entry a line of JSON."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            start = line.find("{")
            if start >= 0:
                try:
                    found.append(json.loads(line[start:].rstrip('"').replace('\\"', '"')))
                except ValueError:
                    continue
        return found

    def stub_pids(self) -> list[int]:
        """Return the processes that models run in."""
        children = Path(f"/proc/{self.process.pid}/task")
        found = []
        for task in children.glob("*/children"):
            found += [int(pid) for pid in task.read_text().split()]
        return found

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Send a signal and wait; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._folder.cleanup()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    arguments = parser.parse_args()
    with Server(arguments.repository.resolve()) as server:
        server.ready()
        print(f"ready after {server.ready_seconds:.1f} s: HTTP {server.http}, gRPC {server.grpc}, "
              f"metrics http://{server.metrics}/metrics")  # fmt: skip
        try:
            server.process.wait()
        except KeyboardInterrupt:
            print("stopping")


if __name__ == "__main__":
    main()
