"""The parts of the demo pipeline `shapes`: its tokenizer, its models, and its latent space."""

import copy
import math
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tgate_export.data.shapes_world import COLOURS, SHAPES

MAX_TOKENS = 16
TEXT_WIDTH = 96
LATENT_CHANNELS = 8
LATENT_SIZE = 8
PATCH = 8
"""Side of the square of pixels that one latent position stands for."""

_GREY = (1 / 7, 2 / 7, 4 / 7)
"""Weights of red, green and blue: no two colours of the palette get the same grey."""
_WAVES = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))
"""Frequencies along y and x of the cosines that latent channels 3 to 7 measure."""
_COLOUR_SCALE, _WAVE_SCALE = 1.3, 4.0
"""Bring the colour channels to a standard deviation of about 1 and the cosines' to about 0.5."""


def encode(pictures: Tensor) -> Tensor:
    """The latents `[B, 8, 8, 8]` of pictures `[B, 3, 64, 64]` in -1..1, by a fixed formula.

    Each position holds the mean colour of its 8x8 patch and the five lowest cosine coefficients
    (DCT-II) of the patch's grey values, which say where in the patch an edge runs. The encoder
    learns this formula and the decoder its inverse. A fixed latent space lets the denoiser train
    at the same time as the autoencoder, and a smooth one lets it train fast.
    """
    batch = len(pictures)
    patches = pictures.reshape(batch, 3, LATENT_SIZE, PATCH, LATENT_SIZE, PATCH)
    colours = patches.mean(dim=(3, 5)) * _COLOUR_SCALE
    grey = torch.einsum("bchywx,c->bhywx", patches, torch.tensor(_GREY))
    at = (torch.arange(PATCH) + 0.5) / PATCH * math.pi
    cosines = torch.stack([torch.cos(k * at) * (math.sqrt(2.0) if k else 1.0) for k in range(3)])
    cosines = cosines / PATCH
    waves = torch.einsum("bhywx,iy,jx->bijhw", grey, cosines, cosines)
    chosen = torch.stack([waves[:, i, j] for i, j in _WAVES], dim=1) * _WAVE_SCALE
    return torch.cat([colours, chosen], dim=1)


def build_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer in which each word of a caption is one token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable]
    # Byte-level BPE writes the other bytes as characters from U+0100 on (GPT-2's table).
    alphabet += [chr(256 + i) for i in range(256 - len(printable))]
    merges: list[tuple[str, str]] = []
    words = ("a", "on", "background", *COLOURS, *SHAPES)
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        for merge in merges:
            parts = _apply_merge(parts, merge)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = _apply_merge(parts, merges[-1])
    tokens = [*alphabet, *(char + "</w>" for char in alphabet)]
    tokens += ["".join(merge) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _apply_merge(parts: list[str], merge: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == merge:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def build_pipeline(seed: int) -> StableDiffusionPipeline:
    """The whole pipeline with random weights."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 64),
        layers_per_block=1,
        scaling_factor=1.0,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
    )
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(64, 128),
        layers_per_block=1,
        # Despite its name the number of heads: 32 channels each.
        attention_head_dim=(2, 4),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )
    scheduler = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    # `clip_sample` is DDIM's: kept in the config for those who switch samplers.
    scheduler.register_to_config(clip_sample=False)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(
    pipeline: StableDiffusionPipeline, target: Path, parts: dict[str, nn.Module] | None = None
) -> None:
    """Write the pipeline in fp16; a reader of `target` sees the old file or the new, never half."""
    components = dict(pipeline.components) | (parts or {})
    for name in ("vae", "text_encoder", "unet"):
        components[name] = copy.deepcopy(components[name]).half().eval()
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    StableDiffusionPipeline(**components, requires_safety_checker=False).save_pretrained(staging)
    # By default transformers loads weights in the dtype named here, diffusers always in float32:
    # a pipeline needs them to agree.
    config = staging / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            path.chmod(0o644)
            place = target / path.relative_to(staging)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    shutil.rmtree(staging)
