"""The binding plan: which buffer goes to which tensor in which launch. Pure, no devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from tgate_export.bundle.dims import concrete_shape, named_dims
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.manifest_graphs import DType, Input, Tensor
from tgate_export.bundle.origins import FromLoop
from tgate_export.bundle.sampler_table import HISTORY, NUM_WEIGHTS
from tgate_export.common.errors import BundleError
from tgate_export.runtime.buffers import NEGATIVE, buffer_of
from tgate_export.steps.step_plan import StepPlan


@dataclass(frozen=True)
class Slot:
    """A buffer, or one row of a buffer that holds a value for every step."""

    buffer: str
    row: int | None = None


@dataclass(frozen=True)
class BufferSpec:
    """Memory that lives as long as a run's shape: allocated once, bound many times.

    Attributes:
        dtype: element type.
        shape: shape of one row, as the graphs see it.
        rows: number of rows, or None for a buffer that is a single tensor.
    """

    dtype: DType
    shape: tuple[int, ...]
    rows: int | None = None

    @property
    def slots(self) -> int:
        """How many tensors the buffer holds."""
        return 1 if self.rows is None else self.rows


@dataclass(frozen=True)
class Launch:
    """One engine run with every tensor bound to a slot."""

    graph: str
    inputs: Mapping[str, Slot]
    outputs: Mapping[str, Slot]


@dataclass(frozen=True)
class RunShape:
    """What the memory and the launches of a run depend on.

    Attributes:
        batch: images.
        height: pixels.
        width: pixels.
        step_plan: the graph of every evaluation.
        noise: whether the sampler draws noise at its steps.
        image: whether the run begins with an image.
    """

    batch: int
    height: int
    width: int
    step_plan: StepPlan
    noise: bool = False
    image: bool = False


@dataclass(frozen=True)
class BindingPlan:
    """Buffers and launches of one run, decided before anything is launched.

    Attributes:
        buffers: by name.
        encode: the prompt encoder's launches, for the prompt and the negative one.
        encode_image: the VAE encoder's launch, if the run begins with an image.
        steps: for each evaluation, the denoiser's launch and the sampler's.
        decode: the launch after the loop.
        latents: the slot of the final latents.
    """

    buffers: Mapping[str, BufferSpec]
    encode: tuple[Launch, ...]
    encode_image: Launch | None
    steps: tuple[tuple[Launch, Launch], ...]
    decode: Launch
    latents: Slot

    @property
    def launches(self) -> tuple[Launch, ...]:
        """Every launch, in order."""
        image = () if self.encode_image is None else (self.encode_image,)
        steps = (launch for step in self.steps for launch in step)
        return (*image, *self.encode, *steps, self.decode)


def plan_run(manifest: Manifest, shape: RunShape) -> BindingPlan:
    """Decide the memory and every launch of a run.

    Every cache has one buffer: a graph writes it where a later one reads it. The sample and the
    history alternate between two buffers, so that the sampler never reads what it writes.

    Raises:
        BundleError: when a graph has a tensor that no buffer fits.
    """
    evaluations = len(shape.step_plan.phases)
    phases = tuple(dict.fromkeys(shape.step_plan.phases))
    buffers = run_buffers(manifest, shape, phases, evaluations)
    bind = partial(bind_launch, manifest, buffers)
    steps = tuple(
        (
            bind(phase, {"sample": Slot("denoiser_input"), "timestep": Slot("timestep", step)}),
            bind(
                "sampler",
                {
                    "sample": Slot(f"sample.{step % 2}"),
                    "history": Slot(f"history.{step % 2}"),
                    "weights": Slot("weights", step),
                    "noise": Slot("noise", step if shape.noise else None),
                },
                {
                    "next_sample": Slot(f"sample.{(step + 1) % 2}"),
                    "next_history": Slot(f"history.{(step + 1) % 2}"),
                },
            ),
        )
        for step, phase in enumerate(shape.step_plan.phases)
    )
    latents = Slot(f"sample.{evaluations % 2}")
    return BindingPlan(
        buffers=buffers,
        encode=tuple(
            bind(manifest.prompt_encoder, negative=negative)
            for negative in ((False, True) if manifest.takes_negative else (False,))
        ),
        encode_image=bind("vae_encoder") if shape.image else None,
        steps=steps,
        decode=bind("vae_decoder", {"latents": latents}),
        latents=latents,
    )


def run_buffers(
    manifest: Manifest, shape: RunShape, phases: Iterable[str], evaluations: int | None
) -> dict[str, BufferSpec]:
    """Return the memory of a run, with a row for every evaluation, or a single one for None."""
    dims = named_dims(manifest, batch=shape.batch, height=shape.height, width=shape.width)
    latents = (shape.batch, dims["channels"], dims["latent_height"], dims["latent_width"])
    history = (latents[0], HISTORY, *latents[1:])
    buffers = {
        "timestep": BufferSpec("float32", (shape.batch,), evaluations),
        "weights": BufferSpec("float32", (shape.batch, NUM_WEIGHTS), evaluations),
        # Zeros that every step shares, unless the sampler draws some.
        "noise": BufferSpec("float32", latents, evaluations if shape.noise else None),
        "denoiser_input": BufferSpec("float32", latents),
        "noise_pred": BufferSpec("float32", latents),
    }
    for parity in (0, 1):
        buffers[f"sample.{parity}"] = BufferSpec("float32", latents)
        buffers[f"history.{parity}"] = BufferSpec("float32", history)
    encoder = manifest.prompt_encoder
    others = ["vae_decoder", *(["vae_encoder"] if shape.image else [])]

    def add(buffer: str, graph: str, tensor: Tensor) -> None:
        buffers.setdefault(buffer, BufferSpec(tensor.dtype, concrete_shape(graph, tensor, dims)))

    for name in (encoder, *others, *phases):
        graph = manifest.graph(name)
        for tensor in graph.inputs:
            if not isinstance(tensor.origin, FromLoop):
                add(buffer_of(tensor), name, tensor)
        for output in graph.outputs:
            add(output.name, name, output)
    if manifest.takes_negative:
        for tensor in manifest.graph(encoder).inputs:
            add(buffer_of(tensor, negative=True), encoder, tensor)
        for output in manifest.graph(encoder).outputs:
            add(NEGATIVE + output.name, encoder, output)
    return buffers


def bind_launch(
    manifest: Manifest,
    buffers: Mapping[str, BufferSpec],
    name: str,
    loop: Mapping[str, Slot] | None = None,
    outputs: Mapping[str, Slot] | None = None,
    *,
    negative: bool = False,
) -> Launch:
    """Bind a graph's tensors to buffers.

    Args:
        manifest: the bundle's.
        buffers: of the run.
        name: the graph's.
        loop: slots of what the step loop gives it, by what it is.
        outputs: slots of outputs that are not in the buffers of their own names.
        negative: the graph encodes the negative prompt.
    """
    graph = manifest.graph(name)
    loop, outputs, prefix = loop or {}, outputs or {}, NEGATIVE if negative else ""

    def source(tensor: Input) -> Slot:
        if isinstance(tensor.origin, FromLoop):
            return loop.get(tensor.origin.loop, Slot(tensor.origin.loop))
        return Slot(buffer_of(tensor, negative=negative))

    launch = Launch(
        name,
        {tensor.name: source(tensor) for tensor in graph.inputs},
        {
            tensor.name: outputs.get(tensor.name, Slot(prefix + tensor.name))
            for tensor in graph.outputs
        },
    )
    for tensor in graph.inputs:
        _check_fit(name, tensor, buffers, launch.inputs[tensor.name])
    for output in graph.outputs:
        _check_fit(name, output, buffers, launch.outputs[output.name])
    return launch


def _check_fit(graph: str, expected: Tensor, buffers: Mapping[str, BufferSpec], slot: Slot) -> None:
    spec = buffers.get(slot.buffer)
    fits = (
        spec is not None
        and spec.dtype == expected.dtype
        and len(spec.shape) == len(expected.shape)
        and all(
            isinstance(want, str) or want == have
            for want, have in zip(expected.shape, spec.shape, strict=True)
        )
    )
    if not fits:
        found = "nothing" if spec is None else f"{spec.dtype} {list(spec.shape)}"
        raise BundleError(
            f"graph {graph!r}: tensor {expected.name!r} is {expected.dtype} "
            f"{list(expected.shape)}, but buffer {slot.buffer!r} is {found}"
        )
