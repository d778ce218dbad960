"""Kill a bulk run at random moments: in the end its images are those of a run that nobody killed.

    scripts/kill_bulk.py [BUNDLE] --prompts 2000 --kills 5
    scripts/kill_bulk.py [BUNDLE] --kills 5 --lines 500 --actor-kills 3 -- --ray --ray-actors 2

Generates a file of prompts that differ in everything, once undisturbed, and once with a SIGKILL to
the command now and then. After each kill no line of `images.jsonl` may be there twice, each must
name a file of its hash, and every process that the command had started must end by itself; at the
end, all files must be equal by hash. The last run is not killed, but actors of it may be. Without a
bundle `shapes` is built. Options of `generate` after -- are for the runs that are killed. Prints a
table; exits 1 when a rule was broken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kill_processes import below, gone_after, kill_actor

from tgate_export.bench.machine import machine, now

COLORS = ("red", "green", "blue", "yellow", "white", "black")
SHAPES = ("circle", "square", "triangle")
SCHEDULERS = ("ddim", "euler", "dpm++2m", "euler-a")


@dataclass(frozen=True)
class Kill:
    """One killed run.

    Attributes:
        seconds: after which it was killed.
        ended: whether it was done by then.
        before: images that had a line before it.
        after: and after it.
        unlisted: files without a line.
        torn: whether a part of a line is the last.
        processes: that it had started.
        problems: rules that were broken.
    """

    seconds: float
    ended: bool
    before: int
    after: int
    unlisted: int
    torn: bool
    processes: tuple[psutil.Process, ...]
    problems: tuple[str, ...]

    def row(self) -> str:
        """Return the table row."""
        verdict = "; ".join(self.problems) or "ok"
        ended = "was done" if self.ended else ""
        return (
            f"{self.seconds:8.2f} {self.before:8} {self.after:8} {self.unlisted:10} "
            f"{'yes' if self.torn else 'no':>6} {len(self.processes):9}   "
            f"{verdict} {ended}".rstrip()
        )


def write_prompts(path: Path, count: int, *, most_steps: int = 12) -> None:
    """Write prompts whose steps, gates, samplers, guidance and seeds differ."""
    choice = random.Random(0)
    with path.open("w") as stream:
        for number in range(count):
            steps = choice.randint(2, most_steps)
            line: dict[str, Any] = {
                "id": f"picture {number}",
                "prompt": f"a {choice.choice(COLORS)} {choice.choice(SHAPES)} on a "
                f"{choice.choice(COLORS)} background",
                "steps": steps,
                "gate_step": choice.randint(1, steps),
                "scheduler": choice.choice(SCHEDULERS),
                "guidance_scale": choice.choice([1.0, 3.0, 7.5]),
            }
            if choice.random() < 0.3:
                line["negative_prompt"] = f"a {choice.choice(COLORS)} {choice.choice(SHAPES)}"
            if choice.random() < 0.3:
                line["seed"] = choice.randrange(2**32)
            stream.write(json.dumps(line) + "\n")


def start(
    bundle: Path, prompts: Path, out: Path, options: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start a run."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tgate_export", "generate", str(bundle),
         "--prompts", str(prompts), "--out", str(out), *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(
    bundle: Path, prompts: Path, out: Path, options: Sequence[str] = (),
    actor_kills: Sequence[float] = (),
) -> float:  # fmt: skip
    """Run to the end and return the seconds that it took.

    Args:
        bundle: the bundle's folder.
        prompts: file of prompts.
        out: folder for the images.
        options: of `generate`.
        actor_kills: parts of the prompts at which an actor is killed, in rising order.
    """
    began = time.monotonic()
    process = start(bundle, prompts, out, options)
    if actor_kills:
        count = len(prompts.read_text().splitlines())
        for part in actor_kills:
            while process.poll() is None and len(listed(out)[0]) < part * count:
                time.sleep(0.05)
            kill_actor(process.pid)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run that was to end failed: {errors.decode().strip()}")
    return time.monotonic() - began


def hashes(out: Path) -> dict[str, str]:
    """Return the sha256 of every picture, by its place in the folder."""
    return {
        file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((out / "images").rglob("*"))
        if file.is_file()
    }


def has_lines(out: Path, least: int, seconds: float) -> bool:
    """Return whether so many images have a line; `seconds` are those since a run began."""
    del seconds
    time.sleep(0.05)
    return len(listed(out)[0]) >= least


def listed(out: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return the whole lines of `images.jsonl`, and whether a part of one comes after them."""
    file = out / "images.jsonl"
    whole, _, rest = file.read_bytes().rpartition(b"\n") if file.exists() else (b"", b"", b"")
    return [json.loads(line) for line in whole.splitlines()], bool(rest)


def problems(out: Path) -> tuple[str, ...]:
    """Return what is wrong with what a killed run left."""
    entries, _ = listed(out)
    found = hashes(out)
    twice = [
        line for line, times in Counter(entry["line"] for entry in entries).items() if times > 1
    ]
    wrong = [entry["line"] for entry in entries if found.get(entry["file"]) != entry["sha256"]]
    said = [(twice, "twice in images.jsonl"), (wrong, "without the file that it names")]
    return tuple(f"line {lines[0]} is {what}" for lines, what in said if lines)


def kill_once(
    bundle: Path,
    prompts: Path,
    out: Path,
    when: Callable[[float], bool],
    options: Sequence[str] = (),
) -> Kill:
    """Start a run, kill it when `when` says so of the seconds since, and look at what is left."""
    before = len(listed(out)[0])
    process = start(bundle, prompts, out, options)
    began = time.monotonic()
    while process.poll() is None and not when(time.monotonic() - began):
        time.sleep(0.005)
    seconds, ended = round(time.monotonic() - began, 2), process.poll() is not None
    started = tuple(below(process.pid))
    process.kill()
    process.wait()
    entries, torn = listed(out)
    unlisted = len(hashes(out).keys() - {entry["file"] for entry in entries})
    return Kill(
        seconds, ended, before, len(entries), unlisted, torn, started, problems(out)
    )  # fmt: skip


def differences(expected: Path, out: Path, count: int) -> list[str]:
    """Return how a folder differs from that of a run that nobody killed."""
    mine, theirs = hashes(out), hashes(expected)
    entries, torn = listed(out)
    lines = [entry["line"] for entry in entries]
    found = [*problems(out)]
    if sorted(lines) != list(range(1, count + 1)) or torn:
        found.append(f"images.jsonl has {len(lines)} lines for {count} prompts")
    other = [name for name in theirs if mine.get(name) != theirs[name]]
    if other or mine.keys() != theirs.keys():
        found.append(f"{len(other)} of {count} files differ: {', '.join(other[:3])}")
    if left := sorted(
        {path.name for path in out.iterdir()} - {"images", "images.jsonl", "run.json"}
    ):
        found.append(f"left behind: {', '.join(left)}")
    return found


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--actor-kills", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--lines", type=int,
        help="Kill once so many more images at most have a line. Default: by time.",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="onnxruntime:cpu")
    mine, more = sys.argv[1:], []
    if "--" in mine:
        at = mine.index("--")
        mine, more = mine[:at], mine[at + 1 :]
    return parser.parse_args(mine, argparse.Namespace(options=more))


def main() -> None:
    """Run everything."""
    options = parse_arguments()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kill-bulk-") as folder:
        bundle = options.bundle
        if bundle is None:
            from tgate_export.build.build import build_bundle

            bundle = build_bundle("shapes", out=Path(folder, "bundle"))
        good, out, prompts = Path(folder, "good"), Path(folder, "killed"), Path(folder, "x.jsonl")
        write_prompts(prompts, options.prompts)
        backend = ("--backend", options.backend)
        duration = finish(bundle, prompts, good, backend)
        print(f"{options.prompts} images take {duration:.1f} s undisturbed", flush=True)
        print(" after s    lines    lines   unlisted   torn started", flush=True)
        print("           before    after      files   line processes   verdict", flush=True)
        kills, gone, killed = [], [], (*backend, *options.options)
        with ThreadPoolExecutor(max(1, options.kills)) as pool:
            for _ in range(options.kills):
                if options.lines:
                    least = len(listed(out)[0]) + moments.randint(0, options.lines)
                    when = partial(has_lines, out, least)
                else:
                    when = moments.uniform(0, 2 * duration / (options.kills + 1)).__le__
                kills.append(kill_once(bundle, prompts, out, when, killed))
                print(kills[-1].row(), flush=True)
                gone.append(pool.submit(gone_after, kills[-1].processes))
            there = kills[-1].after / options.prompts if kills else 0.0
            parts = sorted(moments.uniform(there, 1) for _ in range(options.actor_kills))
            seconds = finish(bundle, prompts, out, killed, parts)
            ended = [each.result() for each in gone]
        found = differences(good, out, options.prompts)
        found += [name for _, names in ended for name in names]
        after = ", ".join(str(each) for each, _ in ended)
        print(f"what killed runs had started was gone after {after} s")
        print(f"the last run took {seconds:.1f} s: {'; '.join(found) or 'all files are equal'}")
    if options.json:
        rows = [asdict(replace(each, processes=())) for each in kills]
        for row, kill, (after_seconds, _) in zip(rows, kills, ended, strict=True):
            row |= {"processes": len(kill.processes), "processes_gone_after": after_seconds}
        result = {
            "date": now(), "machine": machine().model_dump(mode="json"),
            "prompts": options.prompts, "options": options.options,
            "undisturbed_seconds": round(duration, 1), "kills": rows,
            "actors_killed_at": [round(part, 3) for part in parts],
            "last_run_seconds": round(seconds, 1), "differences": found,
        }  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(int(bool(found) or any(each.problems for each in kills)))


if __name__ == "__main__":
    main()
