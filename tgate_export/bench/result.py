"""What `bench` and `probe` find, as typed, versioned JSON.

`bench.schema.json` and `probe.schema.json` beside this file are the JSON schemas; every field says
what it is. Times are seconds, memory is bytes, MACs are of one image. Version 2 has `answers`, and
a row's `parameters` in place of a field for each.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ResultModel(BaseModel):
    """What every part of a result is: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Quantiles(ResultModel):
    """Percentiles of readings in seconds, interpolated linearly between readings."""

    p50: float
    p90: float
    p99: float


class Interval(ResultModel):
    """A value and its confidence interval; none from one reading, or over itself."""

    value: float
    low: float | None
    high: float | None


class Similarity(ResultModel):
    """Means over pictures that have the seeds of the baseline's."""

    psnr_db: float = Field(description="100 for equal pictures")
    ssim: float
    images: int
    ssims: list[float] = Field(description="of each picture, in order")


class Adherence(ResultModel):
    """Pictures of the `shapes` world that show what their prompts say."""

    share: float
    prompts: int
    each: list[bool] = Field(description="of each picture, in order")


class Macs(ResultModel):
    """Multiply-accumulates of one image, every stage counted unless it says otherwise."""

    total: int
    papers: int = Field(description="linear and convolution layers only: the papers' convention")
    denoiser_total: int
    denoiser_papers: int


class ExpectedSpeedup(ResultModel):
    """The speed-up that fewer MACs would give on hardware whose time is MACs and nothing else."""

    all_stages: float
    denoiser: float


class Machine(ResultModel):
    """Where it was measured."""

    system: str
    processor: str
    cores: int = Field(description="that this process may use")
    memory_bytes: int | None
    gpu: str | None
    python: str
    packages: dict[str, str]
    environment: dict[str, str] = Field(description="variables that set numbers of threads")


class Attribution(ResultModel):
    """What makes a gated step cheaper than a full one: two factors, whose product is the speed-up.

    `gated` of twice the images evaluates as many samples as `full`, so they differ by what the
    cache saves alone; what `gated` of twice the images takes more is guidance.
    """

    full: float = Field(description="of a step: MACs of one image, or seconds of a batch")
    without_guidance: float = Field(description="guidance dropped, no cache: full / guidance")
    gated: float
    guidance: float = Field(description="how many times cheaper a step is without guidance")
    cache: float = Field(description="how many times cheaper it is with the cache")


Kind = Literal["baseline", "gated", "version_2", "fewer_steps"]
Number = int | float


class Bound(ResultModel):
    """What pictures must meet to count as keeping the quality."""

    metric: Literal["ssim", "adherence"]
    value: float = Field(description="least mean SSIM, or most share of adhering pictures lost")
    text: str


class Target(ResultModel):
    """One bundle on one backend."""

    id: str
    bundle: str
    family: str
    precision: str
    build_key: str
    backend: str
    backend_reason: str
    load_s: float = Field(description="first call less a warm one: engines load when needed")
    weights_bytes: int = Field(description="weight files, each counted once")
    cache_bytes: int = Field(description="cache tensors of one batch")
    peak_host_bytes: int | None = Field(
        description="of a process of its own that loads the bundle and makes one batch"
    )
    device_memory: dict[str, object] | None = Field(description="the backend's own report")
    prompts: list[str] = Field(description="used in turn; image i has seed settings.seed + i")
    bound: Bound
    attribution: Attribution | None = Field(description="from MACs")
    measured_attribution: Attribution | None = Field(
        description="from seconds; none where twice the images do not fit or run at less than "
        "full speed (OpenVINO), without guidance, or interrupted"
    )


class Quality(ResultModel):
    """Pictures beside those of the same target's baseline, of the same prompts and seeds."""

    similarity: Similarity
    adherence: Adherence | None = Field(description="none: the bound does not go by it")
    lost: int | None = Field(description="pictures that adhere in the baseline but not here")
    lost_bound: float | None = Field(
        description="95 % upper confidence bound of the share that is lost (Clopper-Pearson)"
    )
    meets_bound: bool


class Row(ResultModel):
    """One way to generate, what it takes, and what it gives."""

    id: str
    kind: Kind
    label: str
    num_inference_steps: int
    parameters: dict[str, Number] = Field(
        description="of a run, by name, that make the row what it is: gate_step and others; "
        "empty where nothing is gated"
    )
    evaluations: dict[str, int] = Field(description="of the denoiser, by phase")
    latencies_s: list[float] = Field(
        description="bench: of each round's call, in order, which makes settings.batch pictures; "
        "probe: of a picture, by the step times of each gated call"
    )
    latency: Quantiles
    speedup: Interval | None = Field(
        description="over the same target's baseline: ratio of medians"
    )
    quality: Quality | None = Field(description="none: no picture beside one of the baseline's")


class BenchRow(Row):
    """One way to generate with one target. Times are of a call."""

    target: str
    phases: dict[str, Quantiles] = Field(description="of one step's denoiser, by phase")
    stages: dict[str, Quantiles] = Field(
        description="of a call: text_encoder, denoiser, sampler, vae_decoder; host is the rest"
    )
    images_per_second: float
    speedup_over_first: Interval | None = Field(description="over the first target's baseline")
    macs: Macs | None
    expected_speedup: ExpectedSpeedup | None = Field(
        description="over the same target's baseline, by MACs"
    )
    efficiency: float | None = Field(description="speed-up over expected_speedup.all_stages")


class FewerSteps(ResultModel):
    """Fewer plain steps beside a gate."""

    row: str = Field(description="id of the row of plain steps")
    speedup: Interval = Field(description="median time of the gate over that of the plain steps")
    quality: Interval = Field(
        description="plain less gated in the bound's metric: mean over the same pictures"
    )
    as_good: bool


class Answer(ResultModel):
    """What to use, by the rule of docs/choosing-a-gate.md."""

    target: str
    sentence: str
    use: str | None = Field(description="id of a row; none: too little was measured")
    command: str | None = Field(default=None, description="generates as that row does")
    gate: str | None = Field(
        description="id of the best gated row that keeps the quality and is faster"
    )
    fewer_steps: FewerSteps | None = Field(description="none: no such gate, or no such steps")


class BenchSettings(ResultModel):
    """What was asked for."""

    num_inference_steps: int
    gate_steps: list[int]
    scheduler: str | None = Field(description="none: each bundle's default")
    batch: int
    repeats: int
    warmup: int
    seed: int
    confidence: float
    method: str


class BenchResult(ResultModel):
    """What a comparison of bundles measured."""

    schema_version: Literal[2] = 2
    kind: Literal["bench"] = "bench"
    created: str = Field(description="ISO 8601, UTC")
    complete: bool = Field(description="false: interrupted, rows have fewer rounds or are missing")
    answers: list[Answer] = Field(description="one for each target")
    notes: list[str]
    settings: BenchSettings
    machine: Machine
    targets: list[Target]
    rows: list[BenchRow]


class Curve(ResultModel):
    """Relative change of one layer's cross-attention output from a step to the next."""

    layer: str = Field(description="module path")
    change: list[float] = Field(
        description="entry i: |c[i+1] - c[i]| / |c[i+1]| in L2 norm, mean over pictures"
    )


class ProbeSettings(ResultModel):
    """What was asked for."""

    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    seed: int
    prompts: list[str] = Field(description="image i has seed seed + i")
    batch: int = Field(description="pictures of a call that was timed")
    backend: str


class ProbeResult(ResultModel):
    """Where cross-attention converges, and the gate that it allows."""

    schema_version: Literal[2] = 2
    kind: Literal["probe"] = "probe"
    created: str = Field(description="ISO 8601, UTC")
    complete: bool = Field(description="false: interrupted, and nothing is suggested")
    answer: Answer
    suggested: dict[str, Number] | None = Field(
        description="parameters of the earliest gate that meets the bound"
    )
    gate_command: str | None = Field(description="generates with the suggested gate")
    bundle: str
    settings: ProbeSettings
    machine: Machine
    bound: Bound
    curves: list[Curve]
    mean_change: list[float] = Field(description="over all layers")
    rows: list[Row]
