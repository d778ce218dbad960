"""The families, and which of them a pipeline belongs to."""

from __future__ import annotations

from tgate_export.common.errors import ModelError
from tgate_export.families.base import Family
from tgate_export.families.pixart import PIXART
from tgate_export.families.stable_diffusion import STABLE_DIFFUSION
from tgate_export.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from tgate_export.families.stable_video_diffusion import STABLE_VIDEO_DIFFUSION

FAMILIES = {
    family.name: family
    for family in (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, PIXART, STABLE_VIDEO_DIFFUSION)
}

_JOINT_ATTENTION = ("Flux", "StableDiffusion3", "AuraFlow", "QwenImage", "HiDream", "Chroma")


def family_of(pipeline: str, model: str) -> Family:
    """Return the family of a pipeline class.

    Args:
        pipeline: `_class_name` of `model_index.json`.
        model: what the user asked for, for messages.

    Raises:
        ModelError: a pipeline that has nothing to gate, or is not supported.
    """
    if pipeline.startswith(_JOINT_ATTENTION):
        raise ModelError(
            f"{model} is a {pipeline}: its transformer attends to text and image jointly "
            "and has no cross-attention whose output could be cached, so T-GATE does not apply"
        )
    for family in FAMILIES.values():
        if pipeline in family.pipelines:
            return family
    supported = "; ".join(
        f"{' and '.join(family.pipelines)} ({family.title})" for family in FAMILIES.values()
    )
    raise ModelError(f"{model} is a {pipeline}, which is not supported: supported are {supported}")
