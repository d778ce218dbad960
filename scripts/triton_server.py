"""Start the `tritonserver` of the nvidia-pytriton wheel on a model repository, without a GPU.

The wheel has the server, its Python backend and nothing else; its numpy is older than ours, so it
gets a virtual environment of its own. usage: scripts/triton_server.py REPOSITORY
[--http-port N] [--grpc-port N] [--metrics-port N] [--log FILE] [-- OPTIONS OF tritonserver]
Ctrl-C and SIGTERM end it when what it has begun is done; a second one ends it at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType

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


def group_members(group: int) -> list[int]:
    """Return the processes of a process group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _parent, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


class Server:
    """A running server; ends with the block, and so do its models' processes.

    Attributes:
        http: `host:port`; as the two below.
        grpc: the same.
        metrics: the same.
        process: of `tritonserver`.
        log: its output.
        ready_seconds: from start to ready.
    """

    def __init__(
        self,
        repository: Path,
        *options: str,
        venv: Path | None = None,
        ports: Sequence[int | None] = (None, None, None),
        log: Path | None = None,
    ) -> None:
        """Start it; `ready` waits.

        Args:
            repository: of models.
            options: of `tritonserver`.
            venv: the environment that has it; `server_venv` by default.
            ports: of HTTP, gRPC and metrics; free ones where None.
            log: a file for its output, which stays; by default it goes with the server.
        """
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
        chosen = [
            free if port is None else port
            for port, free in zip(ports, free_ports(len(ports)), strict=True)
        ]
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{port}" for port in chosen)
        self.log = log or folder / "log.txt"
        addresses = ("http", "grpc", "metrics")
        command = [
            str(package / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backend.parent}",
            *(f"--{name}-address=127.0.0.1" for name in addresses),
            *(f"--{name}-port={port}" for name, port in zip(addresses, chosen, strict=True)),
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
        end = "" if self.ending() else f"\n{self.log.read_text(errors='replace')[-3000:].strip()}"
        raise RuntimeError(f"tritonserver is not ready{self.ending()}:\n{self.last_words()}{end}")

    def ending(self) -> str:
        """Return how it has ended, as the end of a sentence, if it has."""
        status = self.process.poll()
        if status is None:
            return ""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f", it has ended with {how}"

    def last_words(self) -> str:
        """Return the errors in its log; if there are none, the end of it."""
        text = self.log.read_text(errors="replace")
        errors = [line for line in text.splitlines() if re.match(r"E\d{4} |error", line)]
        return ("\n".join(errors) or text)[-3000:].strip()

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

    def end_group(self, seconds: float = 10.0) -> None:
        """End what outlives the server, which has ended.

        A server that is killed can leave models behind: one that was just renewing a metric waits
        for the answer for ever, with Python's lock held, and so never sees that the server is gone.
        One of ours has a watchdog, which looks once a second; this does not wait for it.
        """
        until = time.monotonic() + seconds
        while group_members(self.process.pid) and time.monotonic() < until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            time.sleep(0.01)

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
            self.process.kill()
            self.process.wait()
        self.end_group()
        self._folder.cleanup()


def main() -> int:
    """Serve until told to stop; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition(" usage:")[0],
        epilog="what follows -- are options of tritonserver",
    )
    parser.add_argument("repository", type=Path)
    for name, default in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, default=default, metavar="N",
                            help=f"default {default}; 0: one that is free")  # fmt: skip
    parser.add_argument("--log", type=Path, help="where its output goes; a new file by default")
    own = sys.argv[1:]
    end = own.index("--") if "--" in own else len(own)
    options = own[end + 1 :]
    arguments = parser.parse_args(own[:end])
    if not arguments.repository.is_dir():
        parser.error(f"{arguments.repository} is not a folder: write one with embed triton")
    log = arguments.log
    if log is None:
        descriptor, name = tempfile.mkstemp(prefix="tritonserver-", suffix=".log")
        os.close(descriptor)
        log = Path(name)
    log = log.resolve()
    ports = [arguments.http_port or None, arguments.grpc_port or None,
             arguments.metrics_port or None]  # fmt: skip
    return serve(arguments.repository.resolve(), options, ports, log)


def serve(repository: Path, options: Sequence[str], ports: Sequence[int | None], log: Path) -> int:
    """Run a server until it ends or SIGTERM or Ctrl-C ends it; say why; return an exit status."""
    told: list[int] = []
    starting = False
    server: Server | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        if not starting:  # nothing runs yet but an installation, which this ends
            sys.exit(128 + number)
        if server is not None and server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM if len(told) == 1 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        venv = server_venv()
        starting = True
        server = Server(repository, *options, venv=venv, ports=ports, log=log)
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with server:
        print(f"log: {log}", flush=True)
        if told:  # while it was started
            server.process.terminate()
        try:
            server.ready()
        except RuntimeError as error:
            if not told:
                print(f"error: {error}\nthe log is {log}", file=sys.stderr)
                return 1
        else:
            print(f"ready after {server.ready_seconds:.1f} s: HTTP {server.http}, "
                  f"gRPC {server.grpc}, metrics http://{server.metrics}/metrics",
                  flush=True)  # fmt: skip
        status = server.process.wait()
    if told:
        print(f"stopped by {signal.Signals(told[0]).name}", flush=True)
        return 0 if status == 0 else 1
    print(f"error: tritonserver is gone{server.ending()}:\n{server.last_words()}\n"
          f"the log is {log}", file=sys.stderr)  # fmt: skip
    return 1


if __name__ == "__main__":
    sys.exit(main())
