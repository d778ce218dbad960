"""Stable Diffusion 1.x and 2.x: a UNet, a KL autoencoder and one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tgate_export.bundle.manifest import Precision, Size
from tgate_export.errors import ModelError, first_line
from tgate_export.families.source import ModelSource
from tgate_export.gating.cross_attention import CacheGroup
from tgate_export.gating.phases import cache_groups, groups_of, make_phase, phases
from tgate_export.schedule import READS, WRITES, CacheKind, Phase

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
RANDOM_SEED = 0


@dataclass(frozen=True)
class GraphInput:
    """A graph's input or output: name, dtype, and a number or a name for each dimension."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphExport:
    """A graph to export: the module is made only when its turn comes.

    Attributes:
        name: the graph's name in the bundle.
        component: the attribute of `Components` whose weights it uses.
        module: makes the module, in the component's dtype at that time.
        inputs: in the order of the module's arguments.
        outputs: in the order of its results.
        sizes: usual size of every named dimension but the batch.
        variadic: how many of the last inputs the module takes as `*args`.
    """

    name: str
    component: str
    module: Callable[[], nn.Module]
    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphInput, ...]
    sizes: Mapping[str, int]
    variadic: int = 0


@dataclass
class Components:
    """A loaded pipeline: the parts that end up in a bundle."""

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: Any
    scheduler_config: dict[str, Any]

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the parts that have weights."""
        return self.unet, self.vae, self.text_encoder

    def to(self, dtype: torch.dtype) -> Components:
        """Convert every weight in place, one at a time."""
        for module in self.modules():
            module.to(dtype)
        return self


class TextEncoder(nn.Module):
    """CLIP text encoder: token ids [B, T] to `prompt_embeds` [B, T, D]."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state, as diffusers without `clip_skip`."""
        hidden: torch.Tensor = self.text_encoder(input_ids)[0]
        return hidden


class VaeDecoder(nn.Module):
    """Latents [B, C, h, w] f32 to images [B, H, W, 3] f32 in [0, 1]."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = float(vae.config.scaling_factor)  # type: ignore[union-attr, arg-type]
        shift = getattr(vae.config, "shift_factor", None)
        self.shift_factor = float(shift) if shift else 0.0
        self.compute_dtype = next(vae.parameters()).dtype

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo the latents' scaling, decode, and map [-1, 1] to [0, 1], as diffusers does."""
        scaled = latents / self.scaling_factor + self.shift_factor
        image = self.vae.decode(scaled.to(self.compute_dtype), return_dict=False)[0]  # type: ignore[operator]
        return (image.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def load(source: ModelSource, precision: Precision) -> Components:
    """Load a pipeline's parts, in evaluation mode, without gradients.

    Raises:
        ModelError: when a weight file cannot be read or does not fit its configuration.
    """
    dtype = TORCH_DTYPES[precision]
    _quiet_libraries()
    parts = _random(source) if source.kind == "random" else _pretrained(source, dtype)
    for module in parts.modules():
        module.eval().requires_grad_(False)
    return parts.to(dtype)


def _quiet_libraries() -> None:
    """Leave progress and warnings to this package's own."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _pretrained(source: ModelSource, dtype: torch.dtype) -> Components:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    def from_directory(cls: Any, component: str, dtype_argument: str) -> Any:
        folder = source.directory / component
        plain = [path for path in folder.glob("*.safetensors") if ".fp16." not in path.name]
        try:
            model, report = cls.from_pretrained(
                folder,
                use_safetensors=True,
                variant=None if plain else "fp16",
                local_files_only=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
                **{dtype_argument: dtype},
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"cannot load {folder}: {first_line(error)}") from error
        if missing := sorted(report["missing_keys"]):  # would be random numbers
            raise ModelError(
                f"the weights in {folder} lack {missing[0]} "
                f"({len(missing)} in all): download the model again"
            )
        return model

    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            source.directory / "tokenizer", local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        folder = source.directory / "tokenizer"
        raise ModelError(f"cannot load {folder}: {first_line(error)}") from error
    return Components(
        unet=from_directory(UNet2DConditionModel, "unet", "torch_dtype"),
        vae=from_directory(AutoencoderKL, "vae", "torch_dtype"),
        text_encoder=from_directory(CLIPTextModel, "text_encoder", "dtype"),
        tokenizer=tokenizer,
        scheduler_config=source.config("scheduler"),
    )


def _random(source: ModelSource) -> Components:
    """Build the exact architecture with weights from a fixed seed."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    generator_state = torch.get_rng_state()
    torch.manual_seed(RANDOM_SEED)
    try:
        text_config = CLIPTextConfig(**source.config("text_encoder"))
        return Components(
            unet=UNet2DConditionModel.from_config(source.config("unet")),
            vae=AutoencoderKL.from_config(source.config("vae")),
            text_encoder=CLIPTextModel(text_config),
            tokenizer=_byte_tokenizer(text_config.vocab_size, text_config.max_position_embeddings),
            scheduler_config=source.config("scheduler"),
        )
    finally:
        torch.set_rng_state(generator_state)


def _byte_tokenizer(vocabulary_size: int, max_length: int) -> Any:
    """Return a CLIP tokenizer that spells every word in bytes: random weights know no words."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    vocabulary["<|startoftext|>"] = vocabulary_size - 2
    vocabulary["<|endoftext|>"] = vocabulary_size - 1
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length)


def denoiser_cache(
    parts: Components, size: Size, downscale: int, kinds: Collection[CacheKind]
) -> tuple[CacheGroup, ...]:
    """Return the stacked cache tensors of the UNet at the bundle's usual size."""
    config: Any = parts.unet.config
    return cache_groups(
        parts.unet,
        in_channels=config.in_channels,
        latent_height=size.height.opt // downscale,
        latent_width=size.width.opt // downscale,
        tokens=parts.tokenizer.model_max_length,
        embedding_width=config.cross_attention_dim,
        kinds=kinds,
    )


def graph_exports(
    parts: Components, size: Size, groups: tuple[CacheGroup, ...], downscale: int
) -> tuple[GraphExport, ...]:
    """Declare the graphs of a bundle with their inputs and outputs, names to axes."""
    config: Any = parts.unet.config
    compute = next(parts.unet.parameters()).dtype
    tokens, width = parts.tokenizer.model_max_length, config.cross_attention_dim
    f32 = torch.float32

    def side(name: str, value: int, fixed: bool) -> int | str:
        return value if fixed else name

    latent_shape = (
        "batch",
        config.in_channels,
        side("latent_height", size.height.opt // downscale, size.height.fixed),
        side("latent_width", size.width.opt // downscale, size.width.fixed),
    )
    image_shape = (
        "batch",
        side("height", size.height.opt, size.height.fixed),
        side("width", size.width.opt, size.width.fixed),
        3,
    )
    fixed = size.height.fixed and size.width.fixed
    caches = {
        group.name: GraphInput(
            group.name,
            compute,
            (
                "batch",
                *([] if group.passes is None else [group.passes]),
                len(group.layers),
                group.tokens if fixed else f"tokens_{index}",
                group.width,
            ),
        )
        for index, group in enumerate(groups)
    }
    sizes = {
        "latent_height": size.height.opt // downscale,
        "latent_width": size.width.opt // downscale,
        **{f"tokens_{index}": group.tokens for index, group in enumerate(groups)},
    }
    sample = GraphInput("sample", f32, latent_shape)
    timestep = GraphInput("timestep", f32, ("batch",))
    noise_pred = GraphInput("noise_pred", f32, latent_shape)
    prompt_embeds = GraphInput("prompt_embeds", compute, ("batch", tokens, width))
    conditions: Mapping[Phase, tuple[GraphInput, ...]] = {
        "full": (
            prompt_embeds,
            GraphInput("negative_prompt_embeds", compute, ("batch", tokens, width)),
            GraphInput("guidance_scale", f32, ("batch",)),
        ),
        "gated": (),
    }

    def denoiser(phase: Phase) -> GraphExport:
        reads = [caches[group.name] for group in groups_of(groups, READS[phase])]
        writes = [caches[group.name] for group in groups_of(groups, WRITES[phase])]

        return GraphExport(
            phase,
            "unet",
            lambda: make_phase(parts.unet, groups, phase),
            (sample, timestep, *conditions["full" if "full" in phase else "gated"], *reads),
            (noise_pred, *writes),
            sizes,
            variadic=len(reads),
        )

    return (
        GraphExport(
            "text_encoder",
            "text_encoder",
            lambda: TextEncoder(parts.text_encoder),
            (GraphInput("input_ids", torch.int64, ("batch", tokens)),),
            (prompt_embeds,),
            sizes,
        ),
        *(denoiser(phase) for phase in phases(groups)),
        GraphExport(
            "vae_decoder",
            "vae",
            lambda: VaeDecoder(parts.vae),
            (GraphInput("latents", f32, latent_shape),),
            (GraphInput("images", f32, image_shape),),
            sizes,
        ),
    )
