"""Samplers by A1111's names: a sampler and a schedule type, apart or in one."""

from __future__ import annotations

from collections.abc import Mapping

from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.picture_file import A1111_SAMPLERS

AUTOMATIC = "Automatic"
_UNIFORM, _KARRAS = "Uniform", "Karras"
_WITHOUT_TYPE = ("DDIM", "PLMS", "UniPC")  # A1111 reads no schedule type for them
_KARRAS_BY_ITSELF = ("DPM++ 2M",)  # what Automatic stands for; of others it is Uniform


def a1111_name(scheduler: str) -> tuple[str, str | None]:
    """Return A1111's sampler and schedule type of a sampler; None where it need not be said."""
    return A1111_SAMPLERS.get(scheduler, (scheduler, None))


def a1111_samplers(manifest: Manifest) -> dict[str, dict[str, str]]:
    """Return a bundle's samplers: A1111's name -> schedule type -> the bundle's name."""
    found: dict[str, dict[str, str]] = {}
    for ours in manifest.samplers:
        sampler, type_ = a1111_name(ours)
        found.setdefault(sampler, {})[type_ or _UNIFORM] = ours
    return found


def find_scheduler(manifest: Manifest, sampler: str, type_: str) -> str | None:
    """Return the bundle's name of a sampler; None for its default.

    Args:
        manifest: the bundle's.
        sampler: A1111's name, as "DPM++ 2M" or "DPM++ 2M Karras", or the bundle's own; "" for the
            default. A type that it says stands above the next argument, as in A1111.
        type_: schedule type; "" for Automatic.

    Raises:
        InvalidRequestError: the bundle has none; the message says which it has.
    """
    type_ = "" if type_.lower() == AUTOMATIC.lower() else type_
    if not sampler:
        if not type_:
            return None
        sampler = a1111_name(manifest.defaults.scheduler)[0]
    known = a1111_samplers(manifest)
    for name, types in known.items():
        if sampler.lower() == name.lower():
            return _of_type(name, types, type_)
        for each, ours in types.items():
            if sampler.lower() in (f"{name} {each}".lower(), ours):
                return ours
    listed = ", ".join(
        name if len(types) == 1 else f"{name} ({', '.join(types)})" for name, types in known.items()
    )
    raise InvalidRequestError(
        f"unknown sampler {sampler!r:.60}: this bundle has {listed}", field="sampler_name"
    )


def _of_type(name: str, types: Mapping[str, str], type_: str) -> str:
    if name in _WITHOUT_TYPE:
        return next(iter(types.values()))
    if not type_:
        usual = _KARRAS if name in _KARRAS_BY_ITSELF else _UNIFORM
        return types.get(usual) or next(iter(types.values()))
    for each, ours in types.items():
        if type_.lower() == each.lower():
            return ours
    raise InvalidRequestError(
        f"this bundle has {name} with {', '.join((AUTOMATIC, *types))}, not with {type_!r:.60}",
        field="scheduler",
    )
