"""`bench` without its command line: open bundles, measure, and return the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from tgate_export.bench.answer import answer
from tgate_export.bench.machine import machine, now
from tgate_export.bench.measure import Advance, Measurement, Plan, Setup
from tgate_export.bench.peak_memory import measure_peak
from tgate_export.bench.prompts import default_prompts, is_shapes
from tgate_export.bench.result import (
    Answer,
    Attribution,
    BenchResult,
    BenchRow,
    BenchSettings,
    Macs,
    Target,
)
from tgate_export.bench.rows import (
    Command,
    baseline,
    binding_plan,
    gated,
    requested_rows,
    spec_of,
)
from tgate_export.bench.statistics import CONFIDENCE, METHOD
from tgate_export.bench.summary import summarise
from tgate_export.bench.work import WorkCounter, attribution, cache_bytes, weights_bytes
from tgate_export.common.errors import InvalidRequestError, ModelError, TGateError
from tgate_export.common.install import pip_install
from tgate_export.runtime.backends.base import BackendOptions
from tgate_export.runtime.pipeline import TGatePipeline

NO_ONNX = "MACs are left out: the onnx package is not installed (pip install onnx)"
LATE_PERCENTILES = "p99 of fewer than 100 rounds is close to the slowest"


@dataclass(frozen=True)
class Comparison:
    """A finished or interrupted comparison.

    Attributes:
        result: what is written as JSON.
        measurement: with the pictures.
    """

    result: BenchResult
    measurement: Measurement


def open_setups(
    bundles: Sequence[Path],
    backends: Sequence[str],
    plan: Plan,
    judging: int,
    options: BackendOptions | None = None,
) -> list[Setup]:
    """Open every bundle on every backend, and check that each row can be run.

    Args:
        bundles: folders.
        backends: names as `TGatePipeline.from_bundle` takes them.
        plan: what will be measured.
        judging: prompts to judge adherence by, for bundles of the `shapes` world.
        options: of every backend.

    Raises:
        TGateError: one line that names the bundle, graph, backend or number that does not fit.
    """
    setups: list[Setup] = []
    for path in bundles:
        for backend in backends:
            pipeline = TGatePipeline.from_bundle(path, backend, options=options)
            names = {setup.name for setup in setups}
            name = f"{pipeline.manifest.name} ({pipeline.backend.name})"
            if name in names:
                copies = sum(other.partition(" #")[0] == name for other in names)
                name = f"{name} #{copies + 1}"
            manifest = pipeline.manifest
            judged = judging // manifest.batch.max * manifest.batch.max or manifest.batch.max
            setup = Setup(
                name,
                pipeline,
                default_prompts(manifest, max(plan.repeats * plan.batch, 1), plan.seed),
                default_prompts(manifest, judged) if judging and is_shapes(manifest) else (),
            )
            check(setup, plan)
            setups.append(setup)
    return setups


def check(setup: Setup, plan: Plan) -> None:
    """Find out before measuring what a setup cannot run.

    Raises:
        TGateError: names the graph, scheduler, or number of steps or images.
    """
    manifest = setup.pipeline.manifest
    scheduler = plan.scheduler or manifest.defaults.scheduler
    if scheduler not in manifest.samplers:
        raise InvalidRequestError(
            f"unknown scheduler {scheduler!r}: {setup.name} has {', '.join(manifest.samplers)}"
        )
    if plan.steps > (most := manifest.samplers[scheduler].max_steps):
        raise InvalidRequestError(f"steps must be 1 to {most}, got {plan.steps}")
    if plan.batch not in manifest.batch:
        raise InvalidRequestError(
            f"batch {plan.batch} does not fit: {setup.name} was built for {manifest.batch}"
        )
    for row in requested_rows(plan.steps, plan.gate_steps, manifest):
        binding_plan(setup.pipeline, row, plan.batch, scheduler)


def require_bench_extra(*packages: str) -> None:
    """Say what to install, before anything is measured.

    Raises:
        TGateError: a package of the `bench` extra is missing.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise TGateError(f"this needs {', '.join(missing)}: {pip_install('bench')}")


def compare(
    setups: Sequence[Setup], plan: Plan, advance: Advance, command: Command | None = None
) -> Comparison:
    """Measure, and keep what was measured when interrupted.

    Args:
        setups: what is compared.
        plan: what is measured.
        advance: called before each call.
        command: writes what generates as an answer says.

    Raises:
        TGateError: what a pipeline raises.
        KeyboardInterrupt: interrupted before anything was measured.
    """
    measurement = Measurement(setups, plan, advance)
    measurement.run()
    if not any(variant.readings for variant in measurement.variants):
        raise KeyboardInterrupt
    notes = [LATE_PERCENTILES] if plan.repeats < 100 else []
    macs, attributions, remarks = _work(measurement)
    notes += remarks
    if not measurement.complete:
        notes.insert(0, "interrupted: rows have fewer rounds than asked for, or are missing")
    rows = summarise(measurement, macs)
    result = BenchResult(
        created=now(),
        complete=measurement.complete,
        answers=[
            _answer(setup, rows, plan, command, complete=measurement.complete) for setup in setups
        ],
        notes=notes,
        settings=BenchSettings(
            num_inference_steps=plan.steps,
            gate_steps=list(plan.gate_steps),
            scheduler=plan.scheduler,
            batch=plan.batch,
            repeats=plan.repeats,
            warmup=plan.warmup,
            seed=plan.seed,
            confidence=CONFIDENCE,
            method=METHOD,
        ),
        machine=machine(),
        targets=[
            _target(setup, plan, attributions.get(setup.name), measurement.complete)
            for setup in setups
        ],
        rows=rows,
    )
    return Comparison(result, measurement)


def _answer(
    setup: Setup, rows: Sequence[BenchRow], plan: Plan, command: Command | None, *, complete: bool
) -> Answer:
    own = [row for row in rows if row.target == setup.name]
    found = answer(setup.name, own, complete=complete)
    use = next((row for row in own if row.id == found.use), None)
    if use is None or command is None:
        return found
    written = command(setup.pipeline, setup.prompts[0], plan.scheduler, spec_of(use))
    return found.model_copy(update={"command": written})


def _work(
    measurement: Measurement,
) -> tuple[dict[int, Macs], dict[str, Attribution], list[str]]:
    """MACs by variant and attributions by target, or why there are none."""
    plan = measurement.plan
    if find_spec("onnx") is None:
        return {}, {}, [NO_ONNX]
    counters = {
        name: WorkCounter(setup.pipeline, plan.batch, plan.scheduler)
        for name, setup in measurement.setups.items()
    }
    try:
        macs = {
            index: counters[variant.target].row(variant.spec)
            for index, variant in enumerate(measurement.variants)
        }
        found = {name: counter.attribution() for name, counter in counters.items()}
    except ModelError as error:
        return {}, {}, [f"MACs are left out: {error}"]
    return macs, {name: entry for name, entry in found.items() if entry}, []


def _target(setup: Setup, plan: Plan, computed: Attribution | None, complete: bool) -> Target:
    pipeline = setup.pipeline
    manifest, bundle = pipeline.manifest, pipeline.bundle
    row = gated(plan.steps, plan.gate_steps[0]) if plan.gate_steps else baseline(plan.steps)
    call = {
        "prompt": list(setup.prompts[: plan.batch]), "seed": plan.seed,
        "scheduler": plan.scheduler, **row.call(),
    }  # fmt: skip
    name = pipeline.backend.name
    return Target(
        id=setup.name,
        bundle=manifest.name,
        family=manifest.family,
        precision=manifest.precision,
        build_key=manifest.build_key,
        backend=name,
        backend_reason=pipeline.backend.reason,
        load_s=setup.load_s,
        weights_bytes=weights_bytes(bundle),
        cache_bytes=cache_bytes(bundle, binding_plan(pipeline, row, plan.batch, plan.scheduler)),
        # Not after an interruption: whoever pressed Ctrl-C wants the report now.
        peak_host_bytes=measure_peak(bundle.path, name, call) if complete else None,
        device_memory=setup.memory.as_dict() if setup.memory else None,
        prompts=list(setup.prompts),
        bound=setup.bound,
        attribution=computed,
        measured_attribution=_measured(setup),
    )


def _measured(setup: Setup) -> Attribution | None:
    """Return the attribution of the median steps."""
    if not setup.twice:
        return None
    full, gated_once = (median(s[phase] for s in setup.single) for phase in ("full", "gated"))
    return attribution(full, median(s["gated"] for s in setup.twice), gated_once)
