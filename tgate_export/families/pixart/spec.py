"""PixArt-alpha and PixArt-Sigma: a diffusion transformer that reads a T5 encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tgate_export.bundle.manifest import Defaults, Size
from tgate_export.bundle.origins import FromFormula
from tgate_export.common.errors import ModelError
from tgate_export.families.spec import Family, TokenizerSpec
from tgate_export.methods.conditioning import Condition, Conditioning

if TYPE_CHECKING:
    from torch import nn

    from tgate_export.families.loading import Components
    from tgate_export.families.source import ModelSource

DEFAULTS = Defaults(num_inference_steps=25, gate_step=8, guidance_scale=4.5, scheduler="dpm++2m")

# `max_sequence_length` of diffusers' pipelines.
_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


def _tokenizers(source: ModelSource) -> tuple[TokenizerSpec, ...]:
    return (
        TokenizerSpec(
            "input_ids",
            "tokenizer",
            "transformers.T5Tokenizer",
            "text_encoder",
            _TOKENS[source.pipeline],
            mask="attention_mask",
            lowercase=True,
        ),
    )


def _conditioning(source: ModelSource) -> Conditioning:
    tokens = _TOKENS[source.pipeline]
    width = source.config("text_encoder")["d_model"]
    conditions = [
        Condition("prompt_embeds", (tokens, width), unconditional="negative"),
        Condition("prompt_attention_mask", (tokens,), unconditional="negative"),
    ]
    if _takes_sizes(source):
        conditions += [
            Condition("resolution", (2,), gated=True, origin=FromFormula(formula="resolution")),
            Condition("aspect_ratio", (1,), gated=True, origin=FromFormula(formula="aspect_ratio")),
        ]
    return Conditioning(tuple(conditions), _predict)


def _takes_sizes(source: ModelSource) -> bool:
    transformer = source.config("transformer")
    conditioned: bool | None = transformer.get("use_additional_conditions")
    return transformer.get("sample_size") == 128 if conditioned is None else conditioned


def _predict(transformer: Any, sample: Any, timestep: Any, conditions: Mapping[str, Any]) -> Any:
    embeds = conditions.get("prompt_embeds")
    if embeds is None:  # the caption is projected all the same, and not read: dead code
        embeds = sample.new_zeros((sample.shape[0], 1, transformer.config.caption_channels))
    noise_pred = transformer(
        sample,
        encoder_hidden_states=embeds,
        timestep=timestep,
        encoder_attention_mask=_bias(
            conditions.get("prompt_attention_mask"), sample, transformer.config.patch_size
        ),
        added_cond_kwargs={
            "resolution": conditions.get("resolution"),
            "aspect_ratio": conditions.get("aspect_ratio"),
        },
        return_dict=False,
    )[0]
    # The other half is a learned variance, which these samplers do not use.
    learned_sigma = transformer.config.out_channels == 2 * transformer.config.in_channels
    return noise_pred.chunk(2, dim=1)[0] if learned_sigma else noise_pred


def _bias(mask: Any, sample: Any, patch_size: int) -> Any:
    """Return the mask [B, T] as what is added to the attention logits, [B, S, T].

    With diffusers' own -10000 for padding; written out for every image token, since ONNX Runtime's
    Attention does not broadcast this axis.
    """
    if mask is None:
        return None
    tokens = (sample.shape[2] // patch_size) * (sample.shape[3] // patch_size)
    bias = (mask.to(sample.dtype) - 1) * 10000.0
    return bias.unsqueeze(1).expand(-1, tokens, -1)


def _prompt_encoder(_source: ModelSource, parts: Components, _size: Size) -> nn.Module:
    from tgate_export.families.pixart.modules import T5TextEncoder

    return T5TextEncoder(parts["text_encoder"])


def _check(source: ModelSource) -> None:
    transformer, encoder = source.config("transformer"), source.config("text_encoder")
    if transformer.get("caption_channels") != encoder.get("d_model"):
        raise ModelError(
            f"{source.model}: its transformer reads captions of width "
            f"{transformer.get('caption_channels')} and its text encoder writes "
            f"{encoder.get('d_model')}: they belong to different pipelines"
        )


FAMILY = Family(
    name="pixart",
    title="PixArt-alpha and PixArt-Sigma",
    pipelines=tuple(_TOKENS),
    weights={
        "text_encoder": "transformers.T5EncoderModel",
        "transformer": "diffusers.PixArtTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
    },
    denoiser="transformer",
    tokenizers=_tokenizers,
    defaults=DEFAULTS,
    check=_check,
    conditioning=_conditioning,
    prompt_encoder=_prompt_encoder,
    dynamic_size=False,
    vae_upcast=True,
)
