#!/usr/bin/env python
"""Time this package beside what else runs the same model on a CPU: same weights, same noise.

Every peer runs in a process of its own, one after the other, in every round: it loads, makes one
picture to warm up and one that counts. Needs the extras export, cpu, openvino and bench, `tgate`
and `DeepCache` as scripts/test installs them, and for optimum-onnx an environment of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peer_worker import PEERS
from rich.console import Console

from tgate_export.bench.machine import machine, now
from tgate_export.bench.macs import Macs, graph_macs, run_macs
from tgate_export.bench.prompts import default_prompts
from tgate_export.build.build import build_bundle
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.methods.tgate import METHOD

WORKER = Path(__file__).with_name("peer_worker.py")
OPTIMUM_SETUP = (
    "optimum-onnx needs an older transformers, so a virtual environment of its own: "
    "python3 -m venv .venv-peers && .venv-peers/bin/pip install torch==2.13.0 "
    "'optimum-onnx[onnxruntime]==0.1.0' transformers==4.57.6 diffusers==0.35.2 accelerate==1.10.1"
)
# Whose final latents a peer's have to equal.
REFERENCE = {
    name: "tgate" if gated else "diffusers"
    for name, gated in (
        ("optimum-onnx", False), ("onnxruntime-ungated", False), ("openvino-ungated", False),
        ("openvino-bf16-ungated", False), ("tgate-bf16", True), ("onnxruntime", True),
        ("openvino", True), ("openvino-bf16", True),
    )
}  # fmt: skip
OURS = ("onnxruntime", "openvino", "openvino-bf16")
BF16 = ("tgate-bf16", "openvino-bf16", "openvino-bf16-ungated")


@dataclass
class Peer:
    """What the rounds of one peer gave; `error` where it cannot run here."""

    name: str
    gated: bool
    runs: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    difference: float | None = None

    def steps(self, phase: str, gate: int) -> list[float]:
        """Seconds of every measured step before, or from, the gate step."""
        found = []
        for run in self.runs:
            steps = run["measured"]["steps_s"]
            split = gate if self.gated else len(steps)
            found += steps[:split] if phase == "full" else steps[split:]
        return found

    def images(self, steps: int, gate: int, measured_gate: int) -> list[float]:
        """Seconds of an image in every round, extrapolated where fewer steps were measured."""
        found = []
        for run in self.runs:
            measured = run["measured"]["steps_s"]
            split, full = (measured_gate, gate) if self.gated else (len(measured), steps)
            seconds = run["measured"]["total_s"] - sum(measured)
            seconds += full * statistics.fmean(measured[:split])
            if steps > full:
                seconds += (steps - full) * statistics.fmean(measured[split:])
            found.append(seconds)
        return found


def main() -> None:
    options = parse()
    console = Console(stderr=True, highlight=False)
    options.work.mkdir(parents=True, exist_ok=True)
    bundle, folder = prepare_model(options, console)
    measured = options.measured_steps or options.steps
    gate = max(1, round(options.gate_step * measured / options.steps))
    spec = {
        "pipeline": str(folder), "bundle": str(bundle.path), "steps": measured, "gate_step": gate,
        "optimum": str(options.work / "optimum"), "warm_up": options.warm_up,
        "prompt": default_prompts(bundle.manifest, 1)[0], "negative_prompt": "",
        "guidance_scale": bundle.manifest.defaults.guidance_scale,
        "latents": str(write_latents(bundle, options.work)),
    }  # fmt: skip
    peers = [Peer(name, not name.endswith("ungated") and name not in ("diffusers", "optimum-onnx"))
             for name in options.peers]  # fmt: skip
    if "optimum-onnx" in options.peers and not (options.work / "optimum").is_dir():
        console.print("exporting with optimum-onnx ...")
        error = work("export-optimum", spec, options)[1]
        for peer in peers:
            if peer.name == "optimum-onnx":
                peer.error = error
    for number in range(options.rounds):
        for peer in peers:
            if peer.error is None:
                console.print(f"round {number + 1} of {options.rounds}: {peer.name}")
                result, peer.error = work(peer.name, spec, options)
                if result:
                    peer.runs.append(result)
    compare_latents(peers, options.work)
    report = summary(options, bundle, peers, gate, measured)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"peers-{options.model}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    sys.exit(1 if any(not peer.runs for peer in peers if peer.name not in BF16) else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes", help="as for `build`; Stable Diffusion only")
    parser.add_argument("--weights", choices=["pretrained", "random"], default="pretrained")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--gate-step", type=int, default=10)
    parser.add_argument(
        "--measured-steps", type=int, metavar="N",
        help="run N steps with the gate at the same share; steps are multiplied out to --steps",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--warm-up", type=int, default=1, help="pictures before the one that counts"
    )
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS))
    parser.add_argument("--bundle", type=Path, help="default: built in --work")
    parser.add_argument("--work", type=Path, help="default: build/peers-MODEL")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument(
        "--optimum-python", type=Path, default=Path(".venv-peers/bin/python"), help=OPTIMUM_SETUP
    )
    options = parser.parse_args()
    options.work = options.work or Path("build") / f"peers-{options.model}"
    if unknown := sorted(set(options.peers) - set(PEERS)):
        parser.error(f"unknown peer {unknown[0]!r}: choose from {', '.join(PEERS)}")
    if not 1 <= options.gate_step < options.steps:
        parser.error("--gate-step must be 1 to --steps - 1")
    if not 2 <= (options.measured_steps or options.steps) <= options.steps:
        parser.error("--measured-steps must be 2 to --steps")
    if "optimum-onnx" in options.peers and not options.optimum_python.is_file():
        parser.error(f"{options.optimum_python} is missing: {OPTIMUM_SETUP}")
    return options


def prepare_model(options: argparse.Namespace, console: Console) -> tuple[Bundle, Path]:
    """Save the pipeline as diffusers does, and build our bundle of the same source."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from tgate_export.families.loading import load
    from tgate_export.families.source import resolve_source

    source = resolve_source(options.model, options.weights)
    folder = options.work / "pipeline"
    if not (folder / "model_index.json").is_file():
        console.print(f"saving the pipeline in {folder} ...")
        parts = load(source, "fp32")
        StableDiffusionPipeline(
            **parts.modules, tokenizer=next(iter(parts.tokenizers.values())),
            scheduler=DDIMScheduler.from_config(parts.scheduler_config),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        ).save_pretrained(folder)  # fmt: skip
        write_for_transformers_4(folder)
        del parts
    if options.bundle is None:
        options.bundle = options.work / "bundle"
        build_bundle(options.model, weights=options.weights, out=options.bundle)
    return open_bundle(options.bundle), folder


def write_for_transformers_4(folder: Path) -> None:
    """Write the tokenizer's files and the text encoder's names as transformers 4 reads them.

    Version 5 writes one file, and names without a prefix; it reads both forms.
    """
    from safetensors.torch import load_file, save_file

    tokenizer = folder / "tokenizer"
    model = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [entry if isinstance(entry, str) else " ".join(entry) for entry in model["merges"]]
    (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    weights = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name.removeprefix('text_model.')}": value
             for name, value in load_file(weights).items()}  # fmt: skip
    save_file(named, weights, metadata={"format": "pt"})


def write_latents(bundle: Bundle, work_folder: Path) -> Path:
    manifest = bundle.manifest
    side = manifest.latents.downscale
    shape = (
        1, manifest.latents.channels, manifest.size.height.opt // side,
        manifest.size.width.opt // side,
    )  # fmt: skip
    np.save(path := work_folder / "latents.npy",
            np.random.default_rng(0).standard_normal(shape, dtype=np.float32))  # fmt: skip
    return path


def work(
    peer: str, spec: dict[str, Any], options: argparse.Namespace
) -> tuple[dict[str, Any] | None, str | None]:
    """Run a peer in its own process; return what it measured, or why it could not."""
    python = options.optimum_python if "optimum" in peer else Path(sys.executable)
    arguments = spec | {"peer": peer, "latents_out": str(options.work / f"{peer}.npy")}
    ended = subprocess.run(
        [python, WORKER, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        return None, last_error(ended.stderr) or f"ended with {ended.returncode}"
    return (json.loads(ended.stdout.splitlines()[-1]) if "export" not in peer else None), None


def last_error(text: str) -> str | None:
    """Return the line that says why a process ended; what it still warns of comes after that."""
    lines = text.strip().splitlines()
    tracebacks = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    if tracebacks:
        after = lines[tracebacks[-1] + 1 :]
        lines = [line for line in after if line and not line[0].isspace()][:1] or lines
    errors = [line for line in lines if line.strip() and "warning" not in line.lower()]
    return (errors or lines or [None])[-1]


def compare_latents(peers: list[Peer], folder: Path) -> None:
    """Note how far final latents are from the reference's, relative to its largest."""
    ran = {peer.name for peer in peers if peer.runs}
    for peer in peers:
        reference = REFERENCE.get(peer.name)
        if peer.name in ran and reference in ran:
            found, expected = (np.load(folder / f"{name}.npy") for name in (peer.name, reference))
            peer.difference = float(np.abs(found - expected).max() / np.abs(expected).max())


def expected_speedup(bundle: Bundle, steps: int, gate: int) -> float:
    """The speed-up over the ungated run expected by multiply-accumulates, all stages counted."""
    around = graph_macs(bundle, "text_encoder") * 2 + graph_macs(bundle, "vae_decoder")

    def total(at: int) -> int:
        macs: Macs = around + run_macs(bundle, METHOD.plan({"gate_step": at}, range(steps)))
        return macs.total

    return total(steps) / total(gate)


def summary(
    options: argparse.Namespace, bundle: Bundle, peers: list[Peer], gate: int, measured: int
) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    for peer in peers:
        if not peer.runs:
            rows[peer.name] = {"error": peer.error}
            continue
        images = peer.images(options.steps, options.gate_step, gate)
        first = [run["first"]["total_s"] / run["measured"]["total_s"] for run in peer.runs]
        median = statistics.median
        rows[peer.name] = {
            "image_s": median(images),
            "images_s": images,
            "full_step_s": median(peer.steps("full", gate)),
            "gated_step_s": median(peer.steps("gated", gate)) if peer.gated else None,
            "load_s": median(run["load_s"] for run in peer.runs),
            "first_over_warm": median(first),
            "peak_bytes": max(run["peak_bytes"] or 0 for run in peer.runs) or None,
            "latents_difference": peer.difference,
        }
    facts = machine()
    return {
        "created": now(),
        "model": options.model,
        "weights": options.weights,
        "steps": options.steps,
        "gate_step": options.gate_step,
        "measured_steps": measured,
        "measured_gate_step": gate,
        "rounds": options.rounds,
        "machine": facts.model_dump(),
        "load_average": os.getloadavg()[0],
        "expected_speedup": expected_speedup(bundle, options.steps, options.gate_step),
        "weights_bytes": sum(
            entry.bytes for name, entry in bundle.manifest.files.items() if name.endswith("weights")
        ),
        "peers": rows,
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the table and what it was measured on."""
    rows, facts = report["peers"], report["machine"]
    ours = [name for name in OURS if "image_s" in rows.get(name, {})]
    lines = [
        f"{report['model']} ({report['weights']} weights), {report['steps']} DDIM steps, gate step "
        f"{report['gate_step']}, one image; {facts['processor']}, {facts['cores']} cores, "
        f"{report['created'][:10]}. Median of {report['rounds']} interleaved rounds, one process "
        f"each{extrapolation(report)}; load average at the end {report['load_average']:.1f}.",
        "",
        "| " + " | ".join([
            "", "image", "`full` step", "`gated` step", *(f"{name} is faster by" for name in ours),
            "first image / warm", "peak memory", "latents differ by",
        ]) + " |",
    ]  # fmt: skip
    lines.append("|" + " --- |" * (lines[-1].count("|") - 1))
    for name, row in rows.items():
        if "image_s" not in row:
            lines.append(f"| {name} | not run: {row['error']} |")
            continue
        gated, differ = row["gated_step_s"], row["latents_difference"]
        ratios = [f"{row['image_s'] / rows[own]['image_s']:.2f}x" for own in ours]
        peak = row["peak_bytes"]
        lines.append("| " + " | ".join([
            name, f"{row['image_s']:.2f} s", f"{row['full_step_s']:.3f} s",
            "" if gated is None else f"{gated:.3f} s", *ratios, f"{row['first_over_warm']:.2f}",
            f"{peak / 1e9:.2f} GB" if peak else "", "" if differ is None else f"{differ:.0e}",
        ]) + " |")  # fmt: skip
    lines += ["", *efficiencies(report)]
    return "\n".join(lines) + "\n"


def extrapolation(report: dict[str, Any]) -> str:
    if report["measured_steps"] == report["steps"]:
        return ""
    return (
        f"; {report['measured_steps']} steps with gate step {report['measured_gate_step']} were "
        "run, and the mean steps multiplied out"
    )


def efficiencies(report: dict[str, Any]) -> Iterator[str]:
    rows, expected = report["peers"], report["expected_speedup"]
    for name in OURS:
        own, ungated = rows.get(name, {}), rows.get(f"{name}-ungated", {})
        if "image_s" in own and "image_s" in ungated:
            found = ungated["image_s"] / own["image_s"]
            yield (
                f"* {name}: {found:.3f}x faster than ungated; {expected:.3f}x is expected by "
                f"multiply-accumulates ({found / expected:.1%} of it)."
            )


if __name__ == "__main__":
    main()
