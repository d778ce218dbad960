"""The families, and which of them a pipeline belongs to."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

from tgate_export.common.errors import ModelError
from tgate_export.families.spec import Family

FOLDER = Path(__file__).resolve().parent


def _scan() -> dict[str, Family]:
    """Import the specification of every folder here."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]) if module.ispkg)
    specs = (import_module(f"{__package__}.{name}.spec").FAMILY for name in names)
    return {family.name: family for family in specs}


FAMILIES = _scan()


def family_folder(family: Family) -> Path:
    """Return the folder of a family: its name, with underscores."""
    return FOLDER / family.name.replace("-", "_")


def family_module(family: Family) -> str:
    """Return the module that a family begins with, as `code_sha256` takes it.

    Families are found by scanning, so no import says which one code depends on.
    """
    return f"families.{family_folder(family).name}.spec"


_JOINT_ATTENTION = ("Flux", "StableDiffusion3", "AuraFlow", "QwenImage", "HiDream", "Chroma")


def family_of(pipeline: str, model: str, *, aesthetic: bool = False) -> Family:
    """Return the family of a pipeline class.

    Args:
        pipeline: `_class_name` of `model_index.json`.
        model: what the user asked for, for messages.
        aesthetic: whether it says `requires_aesthetics_score` there.

    Raises:
        ModelError: a pipeline that has nothing to gate, or is not supported.
    """
    if pipeline.startswith(_JOINT_ATTENTION):
        raise ModelError(
            f"{model} is a {pipeline}: its transformer attends to text and image jointly "
            "and has no cross-attention whose output could be cached, so T-GATE does not apply"
        )
    for family in FAMILIES.values():
        if pipeline in family.pipelines and family.aesthetic == aesthetic:
            return family
    supported = "; ".join(
        f"{' and '.join(family.pipelines)} ({family.title})" for family in FAMILIES.values()
    )
    raise ModelError(f"{model} is a {pipeline}, which is not supported: supported are {supported}")
