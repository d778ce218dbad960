"""Kill `build` at random moments: never may a bundle be left that opens and is wrong.

    scripts/kill_build.py --model shapes --times 20

Builds once undisturbed, then starts and kills builds: every other time the whole process group,
else the main process alone, whose helpers must then end by themselves; every other time with an
older bundle in place. The cache of exported graphs is empty but every fourth time, and at the end
has what killed builds kept. Prints a table; exits 1 when a rule was broken.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import BundleError

# For helpers to see that the build is gone, on a busy machine.
GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Kill:
    """One killed build: how, when, and what it left."""

    whole_group: bool
    seconds: float
    had_bundle: bool
    found: str
    problems: tuple[str, ...]

    def row(self) -> str:
        """Return the table row."""
        who = "group" if self.whole_group else "process"
        before = "bundle" if self.had_bundle else "nothing"
        verdict = "; ".join(self.problems) or "ok"
        return f"{who:<8} {self.seconds:8.2f}  {before:<8} {self.found:<8} {verdict}"


def start(model: str, out: Path) -> subprocess.Popen[bytes]:
    """Start a build in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tgate_export", "build", "--model", model, "--out", str(out),
         "--force"],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def build(model: str, out: Path) -> float:
    """Build undisturbed and return the seconds that it took."""
    began = time.monotonic()
    process = start(model, out)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the undisturbed build failed: {errors.decode().strip()}")
    return time.monotonic() - began


def group_ends(group: int, seconds: float) -> bool:
    """Wait for the last process of a group; return whether it ended in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def state(out: Path, right: Manifest) -> tuple[str, tuple[str, ...]]:
    """Say what is at `out`, and what is wrong with it."""
    if not out.exists():
        return "nothing", ()
    try:
        found = open_bundle(out).manifest
    except BundleError as error:
        return "damaged", (str(error),)
    # Builds are reproducible, so a right bundle has the hashes of the undisturbed build.
    wrong = found.files != right.files or found.graphs != right.graphs
    return "bundle", ("its files are not those of an undisturbed build",) if wrong else ()


def kill_once(model: str, out: Path, seconds: float, right: Manifest, *, whole_group: bool) -> Kill:
    """Start a build, kill it after `seconds`, and look at what is left."""
    had_bundle = out.exists()
    process = start(model, out)
    time.sleep(seconds)
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()
    problems = []
    if not group_ends(process.pid, GRACE_SECONDS):
        problems.append("a helper process outlived the build")
        os.killpg(process.pid, signal.SIGKILL)
    found, wrong = state(out, right)
    return Kill(whole_group, seconds, had_bundle, found, (*problems, *wrong))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes", help="what `build --model` takes")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Run all kills and the final build."""
    options = parse_arguments()
    moments = random.Random(options.seed)
    broken = False
    with tempfile.TemporaryDirectory(prefix="kill-build-") as folder:
        good, out = Path(folder, "good", "bundle"), Path(folder, "killed", "bundle")
        os.environ["TGATE_EXPORT_CACHE"] = cache = str(Path(folder, "cache"))
        duration = build(options.model, good)
        right = open_bundle(good).manifest
        print(f"an undisturbed build takes {duration:.1f} s", flush=True)
        print("killed    after s  before   after    verdict", flush=True)
        for index in range(options.times):
            if index // 2 % 2 and not out.exists():
                shutil.copytree(good, out)
            elif not index // 2 % 2 and out.exists():
                shutil.rmtree(out)
            if index % 4 != 3:  # else it finds what killed builds have kept
                shutil.rmtree(cache, ignore_errors=True)
            moment = moments.uniform(0, duration)
            kill = kill_once(options.model, out, moment, right, whole_group=index % 2 == 0)
            broken |= bool(kill.problems)
            print(kill.row(), flush=True)
        build(options.model, out)
        found, problems = state(out, right)
        left = sorted(set(os.listdir(out.parent)) - {out.name})
        if found != "bundle" or problems or left:
            broken = True
            print(f"after the last build: {found} {'; '.join(problems)}, left behind: {left}")
        else:
            print("the next build succeeded and left nothing else behind")
    sys.exit(int(broken))


if __name__ == "__main__":
    main()
