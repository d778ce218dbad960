"""A bundle's samplers by A1111's names: a sampler and a schedule type, apart or in one."""

from __future__ import annotations

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_names import UNIFORM, a1111_name, find_name
from tgate_export.common.errors import InvalidRequestError

AUTOMATIC = "Automatic"


def a1111_samplers(manifest: Manifest) -> dict[str, dict[str, str]]:
    """Return a bundle's samplers: A1111's name -> schedule type -> the bundle's name."""
    found: dict[str, dict[str, str]] = {}
    for ours in manifest.samplers:
        sampler, type_ = a1111_name(ours)
        found.setdefault(sampler, {})[type_ or UNIFORM] = ours
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
    try:
        found = find_name(sampler, type_)
    except InvalidRequestError as error:
        raise InvalidRequestError(error.message, field="scheduler") from None
    ours = sampler.lower() if found is None else str(found)
    if ours in manifest.samplers:
        return ours
    types = next((types for name, types in known.items() if name.lower() == sampler.lower()), {})
    if types and not type_:  # Automatic: the nearest that there is
        return next(iter(types.values()))
    if types:
        raise InvalidRequestError(
            f"this bundle has {sampler} with {', '.join((AUTOMATIC, *types))}, not with "
            f"{type_!r:.60}",
            field="scheduler",
        )
    listed = ", ".join(
        name if len(types) == 1 else f"{name} ({', '.join(types)})" for name, types in known.items()
    )
    raise InvalidRequestError(
        f"unknown sampler {sampler!r:.60}: this bundle has {listed}", field="sampler_name"
    )
