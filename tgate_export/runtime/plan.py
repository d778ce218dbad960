"""The binding plan: which buffer goes to which tensor in which launch. Pure, no devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tgate_export.bundle.dims import concrete_shape, named_dims
from tgate_export.bundle.manifest import DType, Graph, Manifest, Tensor
from tgate_export.bundle.sampler_table import HISTORY, NUM_WEIGHTS
from tgate_export.common.errors import BundleError
from tgate_export.steps.step_plan import StepPlan

# The text encoder's tensors of the negative prompt have the names of the prompt's after this.
NEGATIVE = "negative_"


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
    buffers = run_buffers(manifest, shape, evaluations)
    steps = tuple(
        (
            bind_launch(manifest, buffers, phase, {"sample": Slot("denoiser_input"),
                                               "timestep": Slot("timestep", step)}),
            bind_launch(
                manifest,
                buffers,
                "sampler",
                {
                    "sample": Slot(f"sample.{step % 2}"),
                    "history": Slot(f"history.{step % 2}"),
                    "weights": Slot("weights", step),
                    "noise": Slot("noise", step if shape.noise else None),
                    "next_sample": Slot(f"sample.{(step + 1) % 2}"),
                    "next_history": Slot(f"history.{(step + 1) % 2}"),
                },
            ),
        )
        for step, phase in enumerate(shape.step_plan.phases)
    )  # fmt: skip
    latents = Slot(f"sample.{evaluations % 2}")
    encoder = manifest.prompt_encoder
    negative = {name: Slot(NEGATIVE + name) for name in _tensors(manifest, encoder)}
    return BindingPlan(
        buffers=buffers,
        encode=tuple(
            bind_launch(manifest, buffers, encoder, slots)
            for slots in ([{}, negative] if manifest.takes_negative else [{}])
        ),
        encode_image=bind_launch(manifest, buffers, "vae_encoder", {}) if shape.image else None,
        steps=steps,
        decode=bind_launch(manifest, buffers, "vae_decoder", {"latents": latents}),
        latents=latents,
    )


def run_buffers(
    manifest: Manifest, shape: RunShape, evaluations: int | None
) -> dict[str, BufferSpec]:
    """Return the memory of a run, with a row for every evaluation, or a single one for None."""
    dims = named_dims(manifest, batch=shape.batch, height=shape.height, width=shape.width)
    latents = (shape.batch, dims["channels"], dims["latent_height"], dims["latent_width"])
    history = (latents[0], HISTORY, *latents[1:])
    buffers = {
        "guidance_scale": BufferSpec("float32", (shape.batch, *_per_frame(manifest))),
        "guidance_rescale": BufferSpec("float32", (shape.batch,)),
        "timestep": BufferSpec("float32", (shape.batch,), evaluations),
        "weights": BufferSpec("float32", (shape.batch, NUM_WEIGHTS), evaluations),
        # Zeros that every step shares, unless the sampler draws some.
        "noise": BufferSpec("float32", latents, evaluations if shape.noise else None),
        "denoiser_input": BufferSpec("float32", latents),
        "noise_pred": BufferSpec("float32", latents),
    }
    vae = [*manifest.graph("vae_decoder").outputs]
    if shape.image:
        vae += _tensors(manifest, "vae_encoder").values()
    for tensor in vae:
        buffers[tensor.name] = BufferSpec(tensor.dtype, concrete_shape("vae", tensor, dims))
    for tensor in _tensors(manifest, manifest.prompt_encoder).values():
        spec = BufferSpec(tensor.dtype, (shape.batch, *_fixed(tensor.shape[1:])))
        buffers[tensor.name] = spec
        if manifest.takes_negative:
            buffers[NEGATIVE + tensor.name] = spec
    for tensor in manifest.graph("full").inputs:
        if tensor.name in manifest.conditioning:
            buffers[tensor.name] = BufferSpec("float32", (shape.batch, *_fixed(tensor.shape[1:])))
    for parity in (0, 1):
        buffers[f"sample.{parity}"] = BufferSpec("float32", latents)
        buffers[f"history.{parity}"] = BufferSpec("float32", history)
    cache_dtypes = {tensor.name: tensor.dtype for tensor in manifest.graph("full").outputs}
    for index, cache in enumerate(manifest.cache):
        stacked: tuple[int, ...] = (len(cache.layers), dims[f"tokens_{index}"], cache.width)
        if cache.passes is not None:
            stacked = (cache.passes, *stacked)
        buffers[cache.tensor] = BufferSpec(cache_dtypes[cache.tensor], (shape.batch, *stacked))
    return buffers


def _tensors(manifest: Manifest, graph: str) -> dict[str, Tensor]:
    """Return a graph's inputs and outputs by name."""
    entry = manifest.graph(graph)
    return {tensor.name: tensor for tensor in (*entry.inputs, *entry.outputs)}


def _per_frame(manifest: Manifest) -> tuple[int, ...]:
    return () if manifest.latents.frames is None else (manifest.latents.frames,)


def _fixed(dims: tuple[int | str, ...]) -> tuple[int, ...]:
    if not all(isinstance(dim, int) for dim in dims):
        raise BundleError(f"dimensions {dims} should be fixed in the manifest")
    return tuple(int(dim) for dim in dims)


def bind_launch(
    manifest: Manifest, buffers: Mapping[str, BufferSpec], name: str, slots: Mapping[str, Slot]
) -> Launch:
    """Bind a graph's tensors to `slots`, and the others to the buffers of their own names."""
    graph = manifest.graph(name)

    def bind(direction: str) -> dict[str, Slot]:
        bound = {}
        for tensor in getattr(graph, direction):
            slot = slots.get(tensor.name, Slot(tensor.name))
            _check_fit(name, graph, tensor.name, buffers.get(slot.buffer), slot)
            bound[tensor.name] = slot
        return bound

    return Launch(name, bind("inputs"), bind("outputs"))


def _check_fit(name: str, graph: Graph, tensor: str, spec: BufferSpec | None, slot: Slot) -> None:
    expected = next(entry for entry in (*graph.inputs, *graph.outputs) if entry.name == tensor)
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
            f"graph {name!r}: tensor {tensor!r} is {expected.dtype} {list(expected.shape)}, "
            f"but buffer {slot.buffer!r} is {found}"
        )
