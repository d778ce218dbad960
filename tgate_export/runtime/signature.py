"""The call of a pipeline, which `scripts/generated.py` writes from what is declared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from tgate_export.runtime.pipeline import PipelineOutput
    from tgate_export.runtime.prompts import Embeds
    from tgate_export.runtime.step_info import StepInfo


class Generate(ABC):
    """What can be called as `TGatePipeline` is."""

    @abstractmethod
    def _generate(
        self, arguments: dict[str, Any], callback: Callable[[StepInfo], None] | None
    ) -> PipelineOutput:
        """Make what a call asks for; `arguments` are those of `make_request`."""

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Embeds | None = None,
        negative_prompt_embeds: Embeds | None = None,
        num_inference_steps: int | None = None,
        gate_step: int | None = None,
        sp_interval: int | None = None,
        fi_interval: int | None = None,
        warm_up: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        guidance_rescale: float | None = None,
        cache_blend: float | Sequence[float] | None = None,
        guidance_carry: float | Sequence[float] | None = None,
        clip_skip: int | None = None,
        prompt_syntax: str | None = None,
        scheduler: str | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        aesthetic_score: float | None = None,
        negative_aesthetic_score: float | None = None,
        image: str | Path | Image.Image | np.ndarray | Sequence[Any] | None = None,
        strength: float | None = None,
        fps: int | None = None,
        motion_bucket_id: int | None = None,
        noise_aug_strength: float | None = None,
        min_guidance_scale: float | None = None,
        seed: int | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        latents: np.ndarray | None = None,
        hires: float | str | None = None,
        hires_strength: float | None = None,
        hires_steps: int | None = None,
        hires_upscaler: str | None = None,
        denoising_end: float | None = None,
        denoising_start: float | None = None,
        output_type: str = "pil",
        parameters: Mapping[str, Any] | None = None,
        callback_on_step_end: Callable[[StepInfo], None] | None = None,
    ) -> PipelineOutput:
        """Generate one image for each prompt, or several.

        Where nothing else is said, what is not given is the bundle's default.

        Args:
            prompt: one or more prompts.
            negative_prompt: what to avoid; one for all prompts, or one each. Without one it is the
                empty text, or zero embeddings for a model that was trained so (SDXL).
            prompt_embeds: instead of `prompt`, what the text encoder makes of it [B, T, D]; where
                it makes more than one tensor, a mapping from the name of each of its outputs to its
                array, such as SDXL's `prompt_embeds` and `text_embeds`. Arrays of numpy or tensors
                of torch, of any type and on any device.
            negative_prompt_embeds: instead of `negative_prompt`, what the text encoder makes of it;
                one for all prompts, or one each.
            num_inference_steps: denoising steps.
            gate_step: first step that reuses cross-attention and drops guidance; at the number of
                steps or more there is none. PNDM evaluates once more before step 0. By default the
                bundle's, scaled to the number of steps.
            sp_interval: before the gate step, compute self-attention in steps that are multiples of
                this and reuse it in between; 1: compute it in every step.
            fi_interval: from the gate step on, compute self-attention in steps that are multiples
                of this and reuse it in between; 1: compute it in every step.
            warm_up: compute self-attention in steps 0 to this one, whatever the interval before the
                gate step.
            guidance_scale: weight of classifier-free guidance before the gate step. At 1 or less a
                prompt is generated without guidance and its negative prompt is ignored, as in
                diffusers. One for all prompts, or one each.
            guidance_rescale: 0 to 1: rescale guidance towards the standard deviation that it would
                have without (arXiv 2305.08891), against overexposure. 0.0 when not given.
            cache_blend: 0 to 2: what gated steps reuse of attention is (1 - blend) of the
                unconditional output and blend of the conditional one; 0.5, their mean, is the
                official method, 1 the conditional one alone. One for all prompts, or one each. 0.5
                when not given.
            guidance_carry: 0 to 2: how much of the guidance of the last step before the gate is
                added to every step from the gate on; 0, nothing, is the official method, 1 all of
                it. One for all prompts, or one each. 0.0 when not given.
            clip_skip: skip this many of the CLIP text encoder's last layers; negative prompts skip
                none, as in diffusers. 0 when not given.
            prompt_syntax: how prompts are read. plain: as they are, as in diffusers; a1111: with
                weights such as (word:1.3), BREAK and chunks of tokens, as in A1111's web UI. plain
                when not given.
            scheduler: sampler that the bundle holds, such as "ddim" or "dpm++2m".
            original_size: SDXL: (height, width) that the model is told the image had before
                scaling; by default the image's own.
            crops_coords_top_left: SDXL: (top, left) of the crop that the model is told. (0, 0) when
                not given.
            target_size: SDXL: (height, width) that the model is told; by default the image's own.
            aesthetic_score: SDXL refiner: how beautiful the model is told that the picture is,
                about 1 to 10. 6.0 when not given.
            negative_aesthetic_score: SDXL refiner: how beautiful the model is told that what it is
                to avoid is; from the gate on this is what it is told. 2.5 when not given.
            image: what a video is made from; or, for a bundle built with image-to-image, what to
                begin with instead of noise. Its size is that of the result. One for all prompts, or
                one each. A file, a PIL image in RGB, or an array [H, W, 3], 8-bit or floats in [0,
                1]; instead of a picture to begin with also latents [B, C, h, w].
            strength: how much of the image is generated anew: the last int(steps * strength) steps
                run, and the gate step counts those. 0.8 when not given.
            fps: of a video: frames a second that the model is told. 7 when not given.
            motion_bucket_id: of a video: how much is to move, about 0 to 255. 127 when not given.
            noise_aug_strength: of a video: standard deviation of the noise on its image in [-1, 1];
                more gives more motion and less likeness. 0.02 when not given.
            min_guidance_scale: of a video: the first frame's guidance scale, which rises to that of
                the last. Where neither is above 1 no frame is guided. 1.0 when not given.
            seed: 0 .. 2^64 - 1; random when not given.
            num_images_per_prompt: images of each prompt; image i of a call is that of seed + i.
            height: pixels; the bundle's default when not given.
            width: pixels; the bundle's default when not given.
            latents: starting latents [B, C, h, w], of a video [B, F, C, h, w], of unit variance,
                instead of a seed.
            hires: make the picture small first, and then this many times as large, or in this size
                ("WxH"), beginning with the small one enlarged (the hires fix).
            hires_strength: how much of the enlarged picture is generated anew, as `strength`; 0.7
                when not given.
            hires_steps: steps of the second pass, as `num_inference_steps`, which it is when not
                given. The gate keeps its place among those that run.
            hires_upscaler: how it is enlarged: "latent" (bilinear; when not given),
                "latent-bicubic" or "latent-nearest" without decoding it, or "lanczos" in pixels,
                for a bundle built with image-to-image.
            denoising_end: end after this part of the run, 0 to 1, with latents that have noise
                left, for another model: with output_type="latent".
            denoising_start: begin after this part of the run with the latents `image` as they are,
                which another model ended with. The gate step counts the steps that run.
            output_type: "pil", "np" or "latent".
            parameters: further ones of the bundle's `Manifest.parameters`, by name.
            callback_on_step_end: called after each denoiser evaluation; an exception ends the run.
                It cannot call this pipeline, nor wait for another thread that does.

        Raises:
            InvalidRequestError: an argument out of range; the message names it. Or a callback
                called the pipeline that it is called by.
        """
        arguments: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "num_inference_steps": num_inference_steps,
            "gate_step": gate_step,
            "sp_interval": sp_interval,
            "fi_interval": fi_interval,
            "warm_up": warm_up,
            "guidance_scale": guidance_scale,
            "guidance_rescale": guidance_rescale,
            "cache_blend": cache_blend,
            "guidance_carry": guidance_carry,
            "clip_skip": clip_skip,
            "prompt_syntax": prompt_syntax,
            "scheduler": scheduler,
            "original_size": original_size,
            "crops_coords_top_left": crops_coords_top_left,
            "target_size": target_size,
            "aesthetic_score": aesthetic_score,
            "negative_aesthetic_score": negative_aesthetic_score,
            "image": image,
            "strength": strength,
            "fps": fps,
            "motion_bucket_id": motion_bucket_id,
            "noise_aug_strength": noise_aug_strength,
            "min_guidance_scale": min_guidance_scale,
            "seed": seed,
            "num_images_per_prompt": num_images_per_prompt,
            "height": height,
            "width": width,
            "latents": latents,
            "hires": hires,
            "hires_strength": hires_strength,
            "hires_steps": hires_steps,
            "hires_upscaler": hires_upscaler,
            "denoising_end": denoising_end,
            "denoising_start": denoising_start,
            "output_type": output_type,
        }
        return self._generate(arguments | dict(parameters or {}), callback_on_step_end)
