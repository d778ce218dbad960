"""Tiny pipelines of PixArt-alpha and PixArt-Sigma."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from transformers import T5Config, T5EncoderModel

from tgate_export.families.random_tokenizers import letter_tokenizer
from tgate_export.families.tiny import TinyPipeline, randomized, scheduler_config, small_vae

WIDTH = 32  # of the text encoder's output


def _alpha() -> Any:
    """Told its size (which diffusers does for a sample size of 128 only); learned variance."""
    return _pipeline(PixArtAlphaPipeline, sample_size=128, scaling_factor=0.18215)


def _sigma() -> Any:
    """Not told its size; 300 tokens."""
    return _pipeline(PixArtSigmaPipeline, sample_size=8, scaling_factor=0.13025)


def _pipeline(cls: Any, sample_size: int, scaling_factor: float) -> Any:
    return cls(
        tokenizer=letter_tokenizer(),
        text_encoder=randomized(
            T5EncoderModel(
                T5Config(
                    vocab_size=128,
                    d_model=WIDTH,
                    d_kv=8,
                    d_ff=64,
                    num_layers=2,
                    num_heads=4,
                    feed_forward_proj="gated-gelu",
                )
            )
        ),
        vae=randomized(small_vae(scaling_factor=scaling_factor)),
        transformer=_strengthened(
            randomized(
                PixArtTransformer2DModel(
                    sample_size=sample_size,
                    num_layers=3,
                    num_attention_heads=3,
                    attention_head_dim=8,
                    cross_attention_dim=24,
                    caption_channels=WIDTH,
                )
            )
        ),
        scheduler=DPMSolverMultistepScheduler.from_config(scheduler_config("pixart-alpha")),
    )


def _strengthened(transformer: Any) -> Any:
    """Let the text have a say: random attention averages it away."""
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if ".attn2." in name and parameter.ndim == 2:
                parameter.mul_(4)
    return transformer


PIPELINES = (
    TinyPipeline("pixart-alpha", "PixArt-alpha", _alpha),
    TinyPipeline("pixart-sigma", "PixArt-Sigma", _sigma),
)
