"""Generating writes nothing to a home folder but our cache, and talks to nobody."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Some libraries are silent where these are set; a user has none of them.
UNSET = (
    "CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TGATE_EXPORT_CACHE", "TGATE_EXPORT_TELEMETRY",
    "RAY_USAGE_STATS_ENABLED",
)  # fmt: skip
COMMAND = "from tgate_export.cli import main; main()"


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return kept | {"HOME": str(home), "TMPDIR": str(home.parent)} | more


def generate(bundle: Path, backend: str, out: Path) -> list[str]:
    return [
        sys.executable, "-P", "-c", COMMAND, "generate", str(bundle), "--prompt", "a",
        "--steps", "2", "--backend", backend, "--out", str(out),
    ]  # fmt: skip


def test_an_empty_home_holds_our_cache_only(
    tiny_bundle: Path, tmp_path: Path, cpu_backend: str
) -> None:
    (home := tmp_path / "home").mkdir()
    command = generate(tiny_bundle, cpu_backend, tmp_path / "x.png")
    subprocess.run(command, check=True, env=environment(home), capture_output=True)
    found = {path.relative_to(home).as_posix() for path in home.rglob("*")}
    assert found <= {".cache", ".cache/tgate-export", ".cache/tgate-export/hashes"} | {
        name for name in found if name.startswith(".cache/tgate-export/hashes/")
    }


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_nobody_is_called(tiny_bundle: Path, tmp_path: Path, cpu_backend: str) -> None:
    (home := tmp_path / "home").mkdir()
    trace = ["strace", "-f", "-e", "trace=connect,sendto,sendmsg", "-o", str(tmp_path / "log")]
    command = generate(tiny_bundle, cpu_backend, tmp_path / "x.png")
    done = subprocess.run(
        [*trace, *command], check=False, env=environment(home), capture_output=True, text=True
    )
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip("this machine lets nobody trace")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log").read_text()
    assert "+++ exited with 0 +++" in log
    assert not re.search(r"AF_INET", log)


def test_engines_may_report_when_they_are_asked_to(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = (
        "import os, sys, tgate_export\n"
        "print(sys.modules.get('openvino_telemetry', 'free'), "
        "os.environ.get('ORT_DISABLE_TELEMETRY'))"
    )
    for asked, expected in (("", "None 1"), ("0", "None 1"), ("1", "free None")):
        run = subprocess.run(
            [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True,
            env=environment(tmp_path, TGATE_EXPORT_TELEMETRY=asked),
        )  # fmt: skip
        assert run.stdout.strip() == expected


def test_what_another_library_has_imported_is_off_as_well(tmp_path: Path) -> None:
    """OpenVINO finds the stub of its own that does nothing."""
    pytest.importorskip("openvino")
    code = (
        "import openvino_telemetry, tgate_export\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__)"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True,
        env=environment(tmp_path),
    )  # fmt: skip
    assert run.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_a_users_own_setting_stays(tmp_path: Path) -> None:
    code = "import os, tgate_export; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True,
        env=environment(tmp_path, ORT_DISABLE_TELEMETRY="0"),
    )  # fmt: skip
    assert run.stdout.strip() == "0"


def test_a_ray_of_ours_reports_nothing(tmp_path: Path) -> None:
    """As Ray itself sees it."""
    pytest.importorskip("ray")
    code = (
        "import tgate_export\n"
        "from ray._common.usage import usage_lib\n"
        "print(usage_lib.usage_stats_enabled())"
    )
    for asked, expected in (("0", "False"), ("1", "True")):
        run = subprocess.run(
            [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True,
            env=environment(tmp_path, TGATE_EXPORT_TELEMETRY=asked),
        )  # fmt: skip
        assert run.stdout.strip() == expected
