"""What was made, as A1111's answers say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tgate_export import __version__
from tgate_export.bundle.sampler_names import a1111_name
from tgate_export.runtime.picture_file import made_with, of_hires, parameters_text
from tgate_export.runtime.request import Request
from tgate_export.serve.a1111_fields import Call


def info(call: Call, made: Request, timestamp: str, ours: Mapping[str, Any]) -> str:
    """Return the JSON text `info` of an answer.

    Args:
        call: what was asked for.
        made: what it came to.
        timestamp: when it came, as A1111 writes it.
        ours: what A1111 has no place for; it stands under `tgate`.
    """
    manifest = call.wanted.model.manifest
    each = [made_with(manifest, made, index) for index in range(made.images)]
    first = each[0]
    prompts = [image["prompt"] or "" for image in each]
    negatives = [image["negative_prompt"] or "" for image in each]
    seeds = [image["seed"] for image in each]
    sampler, type_ = a1111_name(made.scheduler)
    hires = of_hires(made)
    more = {"Schedule type": type_, **hires, "Gate step": made.gate_step}
    found = {
        "prompt": prompts[0],
        "all_prompts": prompts,
        "negative_prompt": negatives[0],
        "all_negative_prompts": negatives,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * made.images,
        "subseed_strength": 0,
        "width": made.width,
        "height": made.height,
        "sampler_name": sampler,
        "cfg_scale": made.guidance_scales[0],
        "steps": made.num_inference_steps,
        "batch_size": call.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": call.wanted.model.name,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": hires.get("Denoising strength", first["parameters"].get("strength")),
        "extra_generation_params": {name: text for name, text in more.items() if text is not None},
        "index_of_first_image": 0,
        "infotexts": [parameters_text(manifest, made, index) for index in range(made.images)],
        "styles": [],
        "job_timestamp": timestamp,
        "clip_skip": 1 + (first["parameters"].get("clip_skip") or 0),
        "is_using_inpainting_conditioning": False,
        "version": f"tgate-export {__version__}",
        "tgate": ours,
    }
    return json.dumps(found)
