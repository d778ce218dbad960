#!/usr/bin/env python
"""Make one picture with one implementation and say what it took: a process of `compare_peers.py`.

Runs in whatever environment the peer needs, so nothing here is imported before it is known.
"""

import contextlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np


class StepClock:
    """Notes when steps end, by wrapping a scheduler's `step`, and keeps the last latents."""

    def __init__(self, scheduler: Any) -> None:
        self.ends: list[float] = []
        self.latents: Any = None
        self._set_timesteps, self._step = scheduler.set_timesteps, scheduler.step
        scheduler.set_timesteps, scheduler.step = self._started, self._stepped

    def _started(self, *args: Any, **kwargs: Any) -> None:
        self._set_timesteps(*args, **kwargs)
        self.ends = [time.perf_counter()]

    def _stepped(self, *args: Any, **kwargs: Any) -> Any:
        result = self._step(*args, **kwargs)
        self.latents = result[0] if isinstance(result, tuple) else result.prev_sample
        self.ends.append(time.perf_counter())
        return result

    @property
    def steps(self) -> list[float]:
        """Seconds of every step."""
        return [float(seconds) for seconds in np.diff(self.ends)]


def diffusers_pipeline(spec: dict[str, Any]) -> Any:
    import diffusers
    import torch

    diffusers.utils.logging.set_verbosity_error()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        spec["pipeline"], safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, torch_dtype=torch.float32,
    )  # fmt: skip
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def optimum_pipeline(spec: dict[str, Any]) -> Any:
    import diffusers
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    pipe = ORTStableDiffusionPipeline.from_pretrained(
        spec["optimum"], safety_checker=None, provider="CPUExecutionProvider"
    )
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def export_optimum(spec: dict[str, Any]) -> None:
    """Export the pipeline as optimum-onnx does."""
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    pipe = ORTStableDiffusionPipeline.from_pretrained(
        spec["pipeline"], export=True, safety_checker=None, provider="CPUExecutionProvider"
    )
    pipe.save_pretrained(spec["optimum"])


def torch_like(spec: dict[str, Any], kind: str, *, gated: bool, bf16: bool = False) -> Any:
    """Return a function that generates and gives seconds in all, seconds of steps, and latents."""
    import torch

    pipe = optimum_pipeline(spec) if kind == "optimum" else diffusers_pipeline(spec)
    pipe.set_progress_bar_config(disable=True)
    call = pipe
    if gated:
        from tgate import TgateSDLoader

        call = TgateSDLoader(pipe).tgate
    clock = StepClock(pipe.scheduler)
    latents = torch.from_numpy(np.load(spec["latents"]))

    def generate(steps: int, gate: int) -> tuple[float, list[float], np.ndarray]:
        started = time.perf_counter()
        for module in pipe.unet.modules() if gated else ():
            if hasattr(module, "cache"):  # tgate keeps it from call to call
                module.cache = None
        # Version 1: cross-attention alone is gated, as in our run.
        method = {"gate_step": gate, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}
        autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
        with torch.no_grad(), autocast:
            call(
                prompt=spec["prompt"], negative_prompt=spec["negative_prompt"],
                guidance_scale=spec["guidance_scale"], num_inference_steps=steps,
                latents=latents.clone(), output_type="np", **(method if gated else {}),
            )  # fmt: skip
        return time.perf_counter() - started, clock.steps, np.asarray(clock.latents.float())

    return generate


def ours(spec: dict[str, Any], backend: str, *, gated: bool) -> Any:
    from tgate_export import TGatePipeline
    from tgate_export.bench.rows import gate_settings

    pipe = TGatePipeline.from_bundle(spec["bundle"], backend, check_hashes=False)
    latents = np.load(spec["latents"])

    def generate(steps: int, gate: int) -> tuple[float, list[float], np.ndarray]:
        last: dict[str, np.ndarray] = {}

        def keep(info: Any) -> None:
            if info.step == steps - 1:
                last["latents"] = info.latents()

        timings = pipe(
            spec["prompt"], negative_prompt=spec["negative_prompt"], scheduler="ddim",
            guidance_scale=spec["guidance_scale"], num_inference_steps=steps,
            gate_step=gate if gated else steps, sp_interval=1, fi_interval=1, warm_up=0,
            **gate_settings(pipe.manifest)[0],  # the official method's
            latents=latents, output_type="np", callback_on_step_end=keep,
        ).timings  # fmt: skip
        steps_s = [step.denoiser + step.sampler for step in timings.steps]
        return timings.total, steps_s, last["latents"]

    return generate


# What `compare_peers.py` can name.
PEERS = {
    "diffusers": lambda spec: torch_like(spec, "diffusers", gated=False),
    "tgate": lambda spec: torch_like(spec, "diffusers", gated=True),
    "tgate-bf16": lambda spec: torch_like(spec, "diffusers", gated=True, bf16=True),
    "optimum-onnx": lambda spec: torch_like(spec, "optimum", gated=False),
    "onnxruntime-ungated": lambda spec: ours(spec, "onnxruntime:cpu", gated=False),
    "onnxruntime": lambda spec: ours(spec, "onnxruntime:cpu", gated=True),
    "openvino-ungated": lambda spec: ours(spec, "openvino", gated=False),
    "openvino": lambda spec: ours(spec, "openvino", gated=True),
    "openvino-bf16-ungated": lambda spec: ours(spec, "openvino:bf16", gated=False),
    "openvino-bf16": lambda spec: ours(spec, "openvino:bf16", gated=True),
}


def peak_bytes() -> int | None:
    """The most memory that this process had at a time, files that it maps among it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def main() -> None:
    warnings.filterwarnings("ignore")
    spec = json.loads(sys.argv[1])
    if spec["peer"] == "export-optimum":
        export_optimum(spec)
        return
    started = time.perf_counter()
    generate = PEERS[spec["peer"]](spec)
    loaded = time.perf_counter()
    runs = []
    for number in range(spec["warm_up"] + 1):
        before = time.perf_counter()
        total, steps, latents = generate(spec["steps"], spec["gate_step"])
        runs.append({"total_s": total, "steps_s": steps})
        if number == 0:  # our graphs load when they are first needed
            loaded += time.perf_counter() - before - total
    np.save(spec["latents_out"], latents)
    print(
        json.dumps(
            {
                "load_s": loaded - started, "first": runs[0], "measured": runs[-1],
                "peak_bytes": peak_bytes(),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
