"""Samplers are compiled in a process of their own, which ends with the build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tgate_export.errors import TGateError
from tgate_export.export.progress import Progress
from tgate_export.export.solvers import SolverJobs

# As a user writes it: at the top level of a script, without `if __name__ == "__main__"`.
SCRIPT = """
import os, sys
from pathlib import Path
from tgate_export.export.solvers import SolverJobs

print("script runs", flush=True)
with SolverJobs({}, Path(sys.argv[1])) as jobs:
    if "die" in sys.argv:
        os.kill(os.getpid(), 9)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (script := folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, folder / "solvers", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def test_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    process = start(tmp_path)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out == "script runs\n"


def test_helper_that_is_killed_fails_the_build(tmp_path: Path) -> None:
    with SolverJobs({}, tmp_path / "solvers") as jobs:
        jobs._process.kill()
        with pytest.raises(TGateError, match="compiling samplers failed: killed"):
            jobs.results("ddim", Progress())


def test_helper_ends_with_a_killed_build(tmp_path: Path) -> None:
    process = start(tmp_path, "die")
    assert process.wait() == -signal.SIGKILL
    # The helper sees it at once; a busy machine may take a while to let it.
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the helper process outlived the build")
    process.communicate()
