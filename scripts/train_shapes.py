#!/usr/bin/env python
"""Train the demo pipeline `shapes` from nothing, on the CPU.

Two stages that do not wait for each other, because the latent space is a fixed formula
(`shapes_parts.encode`): the autoencoder learns the formula and its inverse; the text encoder and
the denoiser learn together to work in it. Run them at the same time with `--stage autoencoder` and
`--stage denoiser`, then `--stage assemble`; or all in turn, which is the default.

The schedule counts steps, not seconds; the defaults are those of the weights in
`tgate_export/data/shapes`, which leave it before its end, where averages of the weights have long
settled.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from shapes_parts import MAX_TOKENS, build_pipeline, encode, save_pipeline
from torch import Tensor, nn
from transformers import CLIPTextModel

from tgate_export.data import SHAPES_DIR
from tgate_export.data.shapes_world import all_captions, random_scene, render

LATENT_NOISE = 0.1
"""Standard deviation of the noise that the decoder learns to overlook."""
PROMPT_DROPOUT = 0.1
REFRESH_EVERY = 4
"""Every so many steps one batch of the pool is replaced by fresh pictures."""
CAPTION_INDEX = {caption: index for index, caption in enumerate(all_captions())}


class Average:
    """Exponential moving average of a model's weights, as a model of its own."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.shadow = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model's weights, faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(self.shadow.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(*pairs, 1.0 - decay)


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


def train_autoencoder(vae: AutoencoderKL, args: argparse.Namespace) -> None:
    """L1 on the pixels for the decoder; for the encoder, now and then, the latents' formula."""
    torch.manual_seed(args.seed + 1)
    rng = np.random.default_rng(args.seed + 1)
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(vae, 0.99)
    start, window = time.perf_counter(), []
    for step in range(args.vae_stop):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.vae_steps, args.vae_lr)
        pictures, _ = draw(args.vae_batch, rng)
        latents = encode(pictures)
        decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        loss = F.l1_loss(decoded, pictures)
        window.append(loss.item())
        if step % 4 == 0:
            posterior = vae.encode(pictures).latent_dist
            spread = posterior.logvar - 2.0 * math.log(LATENT_NOISE)
            coded = F.mse_loss(posterior.mean, latents)
            loss = loss + coded + 0.01 * spread.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(step)
        if step % 40 == 0 or step == args.vae_stop - 1:
            speed = (step + 1) * args.vae_batch / (time.perf_counter() - start)
            print(
                f"autoencoder {step:5d}/{args.vae_steps}  l1 {np.mean(window):.4f}  "
                f"latents {coded.item():.4f}  {speed:.0f} pictures/s",
                flush=True,
            )
            window.clear()
        if step % 500 == 499 or step == args.vae_stop - 1:
            average.shadow.save_pretrained(args.work / "vae")


def train_denoiser(rank: int, pipeline: StableDiffusionPipeline, args: argparse.Namespace) -> None:
    """Learn to predict v (arXiv 2202.00512), with more of the noisy steps, where layout forms.

    Each worker computes the gradient of its share of the batch on one core: two cores are used
    better by two processes than by one process with two threads.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rendezvous = f"file://{(args.work / 'rendezvous').resolve()}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=args.workers)
    torch.manual_seed(args.seed + 2 + rank)
    rng = np.random.default_rng(args.seed + 2 + rank)
    unet, text_encoder = pipeline.unet.train(), pipeline.text_encoder.train()
    share = args.batch // args.workers
    pictures, labels = draw(args.pool // args.workers, rng)
    pool = encode(pictures)
    if rank == 0:
        print(f"latents' deviation by channel: {pool.std((0, 2, 3)).tolist()}", flush=True)
    del pictures
    prompts = [*CAPTION_INDEX, ""]
    tokens = pipeline.tokenizer(
        prompts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    alphas = pipeline.scheduler.alphas_cumprod
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-3)
    averages = {
        "unet": Average(unet, args.ema),
        "text_encoder": Average(text_encoder, args.ema),
    }
    start, window = time.perf_counter(), []
    for step in range(args.stop):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps, args.lr)
        if step % REFRESH_EVERY == 0:
            at = (step // REFRESH_EVERY * share) % len(pool)
            fresh, labels[at : at + share] = draw(share, rng)
            pool[at : at + share] = encode(fresh)
        pick = torch.randint(len(pool), (share,))
        clean, captions = pool[pick], labels[pick]
        captions[torch.rand(share) < PROMPT_DROPOUT] = len(prompts) - 1
        # A power below 1 of a uniform number: density grows with the noise level.
        timesteps = (1000 * torch.rand(share) ** 0.65).long().clamp(0, 999)
        signal = alphas[timesteps].sqrt()[:, None, None, None]
        sigma = (1.0 - alphas[timesteps]).sqrt()[:, None, None, None]
        noise = torch.randn_like(clean)
        used, inverse = torch.unique(captions, return_inverse=True)
        states = text_encoder(tokens[used])[0][inverse]
        predicted = unet(signal * clean + sigma * noise, timesteps, states).sample
        loss = F.mse_loss(predicted, signal * noise - sigma * clean)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters, args.workers)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if rank > 0:
            continue
        for average in averages.values():
            average.update(step)
        window.append(loss.item())
        if step % 50 == 0:
            speed = (step + 1) * args.batch / (time.perf_counter() - start)
            print(
                f"denoiser {step:6d}/{args.steps}  loss {np.mean(window):.4f}  "
                f"{speed:.0f} samples/s",
                flush=True,
            )
            window.clear()
        if step % args.save_every == args.save_every - 1 or step == args.stop - 1:
            for name, average in averages.items():
                average.shadow.save_pretrained(args.work / name)
            assemble(pipeline, args.work, args.work / "ema")
    dist.destroy_process_group()


def average_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    """Replace every worker's gradients by the mean over the workers."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= workers
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def assemble(pipeline: StableDiffusionPipeline, work: Path, target: Path) -> None:
    """Write the pipeline `target` from the parts trained so far."""
    classes = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    trained = {}
    for name, kind in classes.items():
        if (work / name).is_dir():
            trained[name] = copy.deepcopy(getattr(pipeline, name))
            trained[name].load_state_dict(kind.from_pretrained(work / name).state_dict())
    save_pipeline(pipeline, target, trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--stage", choices=("all", "autoencoder", "denoiser", "assemble"), default="all"
    )
    parser.add_argument("--output", type=Path, default=SHAPES_DIR, help="final fp16 pipeline")
    parser.add_argument("--work", type=Path, default=Path("build/shapes"), help="checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=2500)
    parser.add_argument("--vae-stop", type=int, default=2000, help="leave the schedule here")
    parser.add_argument("--vae-batch", type=int, default=8)
    parser.add_argument("--vae-lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--stop", type=int, default=3500, help="leave the schedule here")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one core each")
    parser.add_argument("--pool", type=int, default=8192, help="coded pictures kept")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    args.work.mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline(args.seed)
    for name in ("vae", "text_encoder", "unet"):
        count = sum(p.numel() for p in getattr(pipeline, name).parameters())
        print(f"{name}: {count:,} parameters", flush=True)
    if args.stage in ("all", "autoencoder"):
        train_autoencoder(pipeline.vae, args)
    if args.stage in ("all", "denoiser"):
        (args.work / "rendezvous").unlink(missing_ok=True)
        torch.multiprocessing.spawn(train_denoiser, (pipeline, args), args.workers)
    if args.stage in ("all", "assemble"):
        assemble(pipeline, args.work, args.output)


if __name__ == "__main__":
    main()
