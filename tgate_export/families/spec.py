"""What a model family declares. Everything here is known without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tgate_export.bundle.manifest import Defaults, Size
from tgate_export.methods.conditioning import Conditioning
from tgate_export.parameters import Parameter, table_entry

if TYPE_CHECKING:
    from torch import nn

    from tgate_export.families.loading import Components
    from tgate_export.families.source import ModelSource

CLIP_SKIP = "clip_skip"


def declared(*names: str) -> dict[str, Parameter]:
    """Return parameters as they are declared for all bundles."""
    return {name: table_entry(name) for name in names}


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer of a pipeline and the text encoder's inputs that it fills.

    Attributes:
        input: the graph input that takes its ids [B, T].
        component: folder in the pipeline.
        class_name: "library.Class" that loads it.
        encoder: the text encoder that reads it; its configuration gives a random one's size.
        max_length: T.
        mask: the graph input that takes 1 for a token and 0 for padding, if there is one.
        lowercase: prompts are lowercased and stripped first.
        columns: see `manifest.Tokenizer`; those of a CLIP text encoder.
    """

    input: str
    component: str
    class_name: str
    encoder: str
    max_length: int
    mask: str | None = None
    lowercase: bool = False
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class Family:
    """How pipelines of one kind are loaded, exported and run.

    Attributes:
        name: what the manifest calls it.
        title: what people call it.
        pipelines: its classes in `model_index.json`.
        weights: component with weights -> "library.Class".
        denoiser: the component that predicts the noise.
        tokenizers: those of a pipeline, in the order of the text encoder's inputs.
        defaults: how a model without a name is sampled unless told otherwise.
        check: refuses, by its configuration, what this family cannot build.
        conditioning: what the denoiser takes, and how it is called.
        prompt_encoder: makes the module that reads what is to be generated -> the conditions of
            `Conditioning.prompt`. Of a text: token ids (and masks) in the order of `tokenizers`; of
            a video: its image, for the bundle's size.
        vae_decoder: makes the module that decodes latents, where they are no images'.
        parameters: what a caller may set besides the parameters of every run.
        extras: further components whose configuration counts.
        size: width and height in pixels, where the configuration of the denoiser does not say.
        dynamic_size: whether one graph can serve several image sizes.
        vae_upcast: an fp16 bundle keeps the VAE in fp32 where its configuration says
            `force_upcast`.
        latents_by_channel: its pipelines read the VAE's `latents_mean` and `latents_std`.
        aesthetic: its pipelines say `requires_aesthetics_score`, those of others do not; their
            runs begin with an image, always.
        image_to_image: a run can begin with an image, as in diffusers' pipelines of that name.
        loras: LoRA files can change the weights of its UNet and text encoders.
        embeddings: textual inversion files can add tokens to its text encoders.
        vaes: classes, as in `weights`, that can take the place of its VAE.
        clip_skips: how many of the text encoders' last layers a prompt can skip; above 0 their
            module takes a last input `clip_skip` [B] i64.
        samplers: those that serve it; all that can be compiled when None.
        zero_negative: the negative conditions of a prompt without a negative prompt are zeros
            (`force_zeros_for_empty_prompt`) instead of those of an empty text.
    """

    name: str
    title: str
    pipelines: tuple[str, ...]
    weights: Mapping[str, str]
    denoiser: str
    tokenizers: Callable[[ModelSource], tuple[TokenizerSpec, ...]]
    defaults: Defaults
    check: Callable[[ModelSource], None]
    conditioning: Callable[[ModelSource], Conditioning]
    prompt_encoder: Callable[[ModelSource, Components, Size], nn.Module]
    vae_decoder: Callable[[ModelSource, Components], nn.Module] | None = None
    parameters: Callable[[ModelSource], Mapping[str, Parameter]] = lambda _source: {}
    extras: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    dynamic_size: bool = True
    samplers: tuple[str, ...] | None = None
    vae_upcast: bool = False
    latents_by_channel: bool = False
    aesthetic: bool = False
    image_to_image: bool = False
    loras: bool = False
    embeddings: bool = False
    vaes: tuple[str, ...] = ()
    clip_skips: Callable[[ModelSource], int] = lambda _source: 0
    zero_negative: Callable[[ModelSource], bool] = lambda _source: False

    def components(self, source: ModelSource) -> tuple[str, ...]:
        """Folders of a pipeline that end up in a bundle; the safety checker does not."""
        tokenizers = (spec.component for spec in self.tokenizers(source))
        return (*self.weights, "scheduler", *self.extras, *tokenizers)
