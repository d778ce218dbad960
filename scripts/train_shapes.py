#!/usr/bin/env python
"""Train the demo pipeline `shapes` from nothing, on the CPU.

Two stages. The autoencoder learns to code a 64x64 picture as `[8, 8, 8]` latents: eightfold
downsampling makes the denoiser four times cheaper than fourfold would, and training time decides
how well such a small model adheres to its prompts. Then the text encoder and the denoiser learn
together, on a pool of coded pictures that is renewed all the time.

The schedule counts steps, not seconds; the defaults are those of the weights in
`tgate_export/data/shapes`.
"""

import argparse
import copy
import math
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tgate_export.data import SHAPES_DIR
from tgate_export.data.shapes_world import COLOURS, SHAPES, all_captions, random_scene, render

MAX_TOKENS = 16
TEXT_WIDTH = 96
LATENT_CHANNELS = 8
LATENT_SIZE = 8
LATENT_NOISE = 0.1
"""Standard deviation of a picture's latents: fixed, for a learnt one starts at 1 and drowns them."""
PRIOR_WEIGHT = 1e-3
PROMPT_DROPOUT = 0.1
REFRESH_EVERY = 4
"""One batch of the pool is replaced by fresh pictures every so many steps."""


# --- the parts ---------------------------------------------------------------------------------


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
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
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
    pipeline: StableDiffusionPipeline, target: Path, averages: "Iterable[Average]" = ()
) -> None:
    """Write the pipeline in fp16; a reader of `target` sees the old file or the new, never half."""
    parts = dict(pipeline.components)
    replaced = {id(average.model): average.shadow for average in averages}
    for name in ("vae", "text_encoder", "unet"):
        parts[name] = copy.deepcopy(replaced.get(id(parts[name]), parts[name])).half().eval()
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(staging)
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(staging)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    shutil.rmtree(staging)


class Average:
    """Exponential moving average of a model's weights, as a model of its own."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.shadow = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(self.shadow.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(*pairs, 1.0 - decay)


# --- the stages --------------------------------------------------------------------------------


def rate(step: int, steps: int, peak: float, warm_up: int = 100) -> float:
    """Learning rate: linear warm-up, then a cosine down to 1 % of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def draw(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Fresh pictures `[count, 3, 64, 64]` in -1..1, and the indices of their captions `[count]`."""
    scenes = [random_scene(rng) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
    captions = torch.tensor([CAPTION_INDEX[scene.caption] for scene in scenes])
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0, captions


CAPTION_INDEX = {caption: index for index, caption in enumerate(all_captions())}


def gradients(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, along y and x."""
    return picture.diff(dim=-2), picture.diff(dim=-1)


def train_autoencoder(vae: AutoencoderKL, args: argparse.Namespace) -> None:
    """L1 on pixels and on their gradients, which keeps edges sharp, and a weak prior."""
    torch.manual_seed(args.seed + 1)
    rng = np.random.default_rng(args.seed + 1)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(vae, 0.99)
    start = time.perf_counter()
    for step in range(args.vae_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.vae_steps, 2e-3)
        pictures, _ = draw(args.vae_batch, rng)
        posterior = vae.encode(pictures).latent_dist
        latents = posterior.mean
        decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        pixel = F.l1_loss(decoded, pictures)
        edges = zip(gradients(decoded), gradients(pictures), strict=True)
        edge = torch.stack([F.l1_loss(a, b) for a, b in edges]).sum()
        # The KL of a Gaussian whose deviation is fixed, and a pull of the predicted one towards it.
        prior = latents.square().mean()
        spread = (posterior.logvar - 2.0 * math.log(LATENT_NOISE)).square().mean()
        loss = pixel + 0.5 * edge + PRIOR_WEIGHT * (prior + 0.1 * spread)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(step)
        if step % 20 == 0 or step == args.vae_steps - 1:
            speed = (step + 1) * args.vae_batch / (time.perf_counter() - start)
            print(
                f"vae {step:5d}/{args.vae_steps}  l1 {pixel.item():.4f}  edge {edge.item():.4f}  "
                f"prior {prior.item():.3f}  {speed:.0f} pictures/s",
                flush=True,
            )
    vae.load_state_dict(average.shadow.state_dict())
    with torch.no_grad():
        latents = vae.encode(draw(512, rng)[0]).latent_dist.mean
    scale = 1.0 / latents.std().item()
    print(f"latents: mean {latents.mean().item():.3f}, scaling factor {scale:.4f}", flush=True)
    vae.register_to_config(scaling_factor=round(scale, 5))


@torch.no_grad()
def encode(vae: AutoencoderKL, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Scaled latents `[count, 8, 8, 8]` of fresh pictures, and their captions' indices."""
    pictures, captions = draw(count, rng)
    return vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor, captions


def train_denoiser(pipeline: StableDiffusionPipeline, args: argparse.Namespace) -> None:
    """Learn to predict v (arXiv 2202.00512), with more of the noisy steps, where layout forms."""
    torch.manual_seed(args.seed + 2)
    rng = np.random.default_rng(args.seed + 2)
    vae = pipeline.vae.eval().requires_grad_(False)
    unet, text_encoder = pipeline.unet.train(), pipeline.text_encoder.train()
    batches = [encode(vae, 64, rng) for _ in range(args.pool // 64)]
    pool = torch.cat([latents for latents, _ in batches])
    labels = torch.cat([captions for _, captions in batches])
    print(f"pool of {len(pool)}, std by channel {pool.std((0, 2, 3)).tolist()}", flush=True)

    prompts = [*all_captions(), ""]
    tokens = pipeline.tokenizer(
        prompts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    alphas = pipeline.scheduler.alphas_cumprod
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-3)
    averages = [Average(unet, 0.999), Average(text_encoder, 0.999)]
    start, window = time.perf_counter(), []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps, args.lr)
        if step % REFRESH_EVERY == 0:
            at = (step // REFRESH_EVERY * 64) % len(pool)
            pool[at : at + 64], labels[at : at + 64] = encode(vae, 64, rng)
        pick = torch.randint(len(pool), (args.batch,))
        clean, captions = pool[pick], labels[pick]
        captions[torch.rand(args.batch) < PROMPT_DROPOUT] = len(prompts) - 1
        # The square root of a uniform number's 1.2th power: density grows with the noise level.
        timesteps = (1000 * torch.rand(args.batch) ** 0.65).long().clamp(0, 999)
        signal = alphas[timesteps].sqrt()[:, None, None, None]
        sigma = (1.0 - alphas[timesteps]).sqrt()[:, None, None, None]
        noise = torch.randn_like(clean)
        used, inverse = torch.unique(captions, return_inverse=True)
        states = text_encoder(tokens[used])[0][inverse]
        predicted = unet(signal * clean + sigma * noise, timesteps, states).sample
        loss = F.mse_loss(predicted, signal * noise - sigma * clean)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for average in averages:
            average.update(step)
        window.append(loss.item())
        if step % 100 == 0:
            speed = (step + 1) * args.batch / (time.perf_counter() - start)
            print(
                f"unet {step:6d}/{args.steps}  loss {np.mean(window):.4f}  {speed:.0f} samples/s",
                flush=True,
            )
            window.clear()
        if step and step % args.save_every == 0:
            save_pipeline(pipeline, args.work / "ema", averages)
    for average in averages:
        average.model.load_state_dict(average.shadow.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=SHAPES_DIR, help="final fp16 pipeline")
    parser.add_argument("--work", type=Path, default=Path("build/shapes"), help="checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vae-steps", type=int, default=1800)
    parser.add_argument("--vae-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pool", type=int, default=16384, help="coded pictures kept")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--reuse-autoencoder", action="store_true", help="of an earlier run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    args.work.mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline(args.seed)
    for name in ("vae", "text_encoder", "unet"):
        count = sum(p.numel() for p in getattr(pipeline, name).parameters())
        print(f"{name}: {count:,} parameters", flush=True)
    trained = args.work / "autoencoder"
    for name in ("vae", "unet"):
        getattr(pipeline, name).to(memory_format=torch.channels_last)  # a third faster on CPUs
    if args.reuse_autoencoder:
        pipeline.register_modules(vae=AutoencoderKL.from_pretrained(trained))
    elif args.vae_steps:
        train_autoencoder(pipeline.vae, args)
        pipeline.vae.save_pretrained(trained)
    if args.steps:
        train_denoiser(pipeline, args)
    save_pipeline(pipeline, args.output)


if __name__ == "__main__":
    main()
