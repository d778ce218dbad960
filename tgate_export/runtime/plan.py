"""The binding plan: which buffer goes to which tensor in which launch. Pure, no devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from tgate_export.bundle.dims import concrete_shape, graph_dims, named_dims
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.manifest_graphs import DType, Input, Tensor
from tgate_export.bundle.origins import FromLoop
from tgate_export.bundle.sampler_table import HISTORY, NUM_WEIGHTS
from tgate_export.common.errors import BundleError
from tgate_export.runtime.buffers import buffer_of


@dataclass(frozen=True)
class BufferSpec:
    """Memory that lives as long as a batch's shape: allocated once, bound many times.

    Attributes:
        dtype: element type.
        shape: as the graphs see it; the first axis is the images'.
    """

    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """One engine run: which buffer every tensor is bound to."""

    graph: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class BatchShape:
    """What the memory and the launches of a batch depend on.

    Attributes:
        batch: images, at most.
        height: pixels.
        width: pixels.
        phases: the denoiser's graphs that its steps may run.
        image: whether the VAE's encoder may run.
    """

    batch: int
    height: int
    width: int
    phases: tuple[str, ...]
    image: bool = False


@dataclass(frozen=True)
class BindingPlan:
    """What a backend makes ready: buffers by name, and every launch on them."""

    buffers: Mapping[str, BufferSpec]
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class BatchPlan:
    """Buffers and launches of a batch, decided before anything is launched.

    Attributes:
        buffers: by name.
        encode: the prompt encoder's launch.
        encode_image: the VAE encoder's launch, if there may be one.
        denoise: the launch of each phase.
        sample: the sampler's launch, from each of the sample's two buffers to the other.
        decode: the launch after the last step.
    """

    buffers: Mapping[str, BufferSpec]
    encode: Launch
    encode_image: Launch | None
    denoise: Mapping[str, Launch]
    sample: tuple[Launch, Launch]
    decode: Launch

    @property
    def bindings(self) -> BindingPlan:
        """Return the buffers and every launch."""
        image = () if self.encode_image is None else (self.encode_image,)
        launches = (self.encode, *image, *self.denoise.values(), *self.sample, self.decode)
        return BindingPlan(self.buffers, launches)


def plan_batch(manifest: Manifest, shape: BatchShape) -> BatchPlan:
    """Decide the memory of a batch, and every launch that its images can need.

    Every cache has one buffer: a graph writes it where a later one reads it. The sample and the
    history alternate between two buffers, so that the sampler never reads what it writes.

    Raises:
        BundleError: when a graph has a tensor that no buffer fits.
    """
    buffers = batch_buffers(manifest, shape)
    bind = partial(bind_launch, manifest, buffers)

    def sampler(source: int) -> Launch:
        return bind(
            "sampler",
            {"sample": f"sample.{source}", "history": f"history.{source}"},
            {"next_sample": f"sample.{1 - source}", "next_history": f"history.{1 - source}"},
        )

    encoder = manifest.graph(manifest.prompt_encoder)
    encoded = {output.name: _encoded(manifest, output) for output in encoder.outputs}
    return BatchPlan(
        buffers=buffers,
        encode=bind(manifest.prompt_encoder, outputs=encoded),
        encode_image=bind("vae_encoder") if shape.image else None,
        denoise={phase: bind(phase, {"sample": "denoiser_input"}) for phase in shape.phases},
        sample=(sampler(0), sampler(1)),
        decode=bind("vae_decoder"),
    )


def batch_buffers(manifest: Manifest, shape: BatchShape) -> dict[str, BufferSpec]:
    """Return the memory of a batch, by buffer."""
    sizes = {"batch": shape.batch, "height": shape.height, "width": shape.width}
    dims = named_dims(manifest, **sizes)
    decoded = graph_dims(manifest, "vae_decoder", **sizes)
    latents = (shape.batch, dims["channels"], dims["latent_height"], dims["latent_width"])
    history = (latents[0], HISTORY, *latents[1:])
    buffers = {
        "timestep": BufferSpec("float32", (shape.batch,)),
        "weights": BufferSpec("float32", (shape.batch, NUM_WEIGHTS)),
        "noise": BufferSpec("float32", latents),
        "denoiser_input": BufferSpec("float32", latents),
        "noise_pred": BufferSpec("float32", latents),
        "latents": BufferSpec(  # to be decoded
            "float32", (*latents[:2], decoded["latent_height"], decoded["latent_width"])
        ),
    }
    for parity in (0, 1):
        buffers[f"sample.{parity}"] = BufferSpec("float32", latents)
        buffers[f"history.{parity}"] = BufferSpec("float32", history)
    others = ["vae_decoder", *(["vae_encoder"] if shape.image else [])]

    def add(buffer: str, graph: str, tensor: Tensor) -> None:
        of_graph = graph_dims(manifest, graph, **sizes)
        spec = BufferSpec(tensor.dtype, concrete_shape(graph, tensor, of_graph))
        buffers.setdefault(buffer, spec)

    for name in (manifest.prompt_encoder, *others, *shape.phases):
        graph = manifest.graph(name)
        for tensor in graph.inputs:
            if not isinstance(tensor.origin, FromLoop):
                add(buffer_of(tensor), name, tensor)
        for output in graph.outputs:
            made = _encoded(manifest, output) if name == manifest.prompt_encoder else output.name
            add(made, name, output)
    return buffers


def _encoded(manifest: Manifest, output: Tensor) -> str:
    """Return the buffer of one of the prompt encoder's outputs.

    It is the denoiser's, unless that reads several of them: those are joined on the host.
    """
    return output.name if manifest.chunks.get(output.name, 1) == 1 else f"chunk/{output.name}"


def bind_launch(
    manifest: Manifest,
    buffers: Mapping[str, BufferSpec],
    name: str,
    loop: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
) -> Launch:
    """Bind a graph's tensors to buffers.

    Args:
        manifest: the bundle's.
        buffers: of the batch.
        name: the graph's.
        loop: buffers of what the step loop gives it, by what it is, where they have other names.
        outputs: buffers of outputs that are not in those of their own names.
    """
    graph = manifest.graph(name)
    loop, outputs = loop or {}, outputs or {}

    def source(tensor: Input) -> str:
        if isinstance(tensor.origin, FromLoop):
            return loop.get(tensor.origin.loop, tensor.origin.loop)
        return buffer_of(tensor)

    launch = Launch(
        name,
        {tensor.name: source(tensor) for tensor in graph.inputs},
        {tensor.name: outputs.get(tensor.name, tensor.name) for tensor in graph.outputs},
    )
    for tensor in graph.inputs:
        _check_fit(name, tensor, buffers, launch.inputs[tensor.name])
    for output in graph.outputs:
        _check_fit(name, output, buffers, launch.outputs[output.name])
    return launch


def _check_fit(graph: str, expected: Tensor, buffers: Mapping[str, BufferSpec], name: str) -> None:
    spec = buffers.get(name)
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
            f"{list(expected.shape)}, but buffer {name!r} is {found}"
        )
