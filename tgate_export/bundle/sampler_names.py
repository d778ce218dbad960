"""Names of samplers: what they are made of, and what others call the same.

A name is a sampler, how its noise levels are spaced, and a list of one's own in place of that:

    NAME[-karras | -exponential | -beta][-linspace | -leading | -trailing][-zsnr][-ays]
    NAME@timesteps=T,T,...    NAME@sigmas=S,S,...

`-zsnr` rescales the noise levels so that a run begins with nothing but noise; `-ays` takes the 10
steps of "Align Your Steps" (arXiv 2404.14507). Without a part the model's own configuration says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from tgate_export.common.errors import InvalidRequestError

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"  # of a bundle that can have more samplers
MOST_STEPS = 100  # of a sampler that is not in the bundle; builds compile as many
AYS_STEPS = 10
SIGMAS = ("karras", "exponential", "beta")
SPACINGS = ("linspace", "leading", "trailing")
_PARTS = (SIGMAS, SPACINGS, ("zsnr",), ("ays",))  # one of each at most, in this order
LISTS = ("timesteps", "sigmas")

_ALL = frozenset((*SIGMAS, *SPACINGS))
_SPACED = frozenset(SPACINGS)
_ZSNR, _AYS = frozenset({"zsnr"}), frozenset({"ays", "timesteps"})
# Samplers -> what may follow them: what diffusers' class of each can do.
SAMPLERS: Mapping[str, frozenset[str]] = {
    "ddim": _SPACED | _ZSNR,
    "euler": _ALL | _ZSNR | _AYS | {"sigmas"},
    "dpm++2m": _ALL | _ZSNR | _AYS,
    "dpm++3m": _ALL | _ZSNR | _AYS,
    "deis": _ALL,
    "unipc": _ALL | _ZSNR,
    "euler-a": _SPACED | _ZSNR,
    "lcm": frozenset({"timesteps"}),
    "pndm": _SPACED,
    "ddpm": _SPACED | _ZSNR | _AYS,
    "lms": _ALL,
    "heun": _ALL | _AYS,
    "dpm2": _ALL,
    "dpm2-a": _ALL,
    "dpm++2s": frozenset(SIGMAS) | _AYS,
    "dpm++sde": _ALL,
    "dpm++2m-sde": _ALL | _ZSNR | _AYS,
    "dpm++2m-sde-heun": _ALL | _ZSNR | _AYS,
    "dpm++3m-sde": _ALL | _ZSNR | _AYS,
    "tcd": frozenset({"timesteps"}),
}
# Of models that are preconditioned in another way, which no other sampler serves.
EDM = ("edm-euler", "edm-dpm++2m")
# What a build compiles unless it is told more, and with `--samplers all`.
USUAL = (
    "ddim", "euler", "euler-karras", "dpm++2m", "dpm++2m-karras", "dpm++3m", "deis", "unipc",
    "euler-a", "lcm", "pndm",
)  # fmt: skip
EVERY = tuple(
    name
    for sampler, parts in SAMPLERS.items()
    for name in (sampler, *(f"{sampler}-{part}" for part in SIGMAS if part in parts))
)

_WITH_NOISE = frozenset(
    {
        "euler-a", "lcm", "ddpm", "dpm2-a", "dpm++sde", "dpm++2m-sde", "dpm++2m-sde-heun",
        "dpm++3m-sde", "tcd",
    }
)  # fmt: skip

# AUTOMATIC1111's web UI has a sampler and a schedule type; "Automatic" depends on the sampler.
A1111_SAMPLERS: Mapping[str, str] = {
    "ddim": "DDIM", "euler": "Euler", "euler-a": "Euler a", "dpm++2m": "DPM++ 2M", "unipc": "UniPC",
    "lcm": "LCM", "pndm": "PLMS", "lms": "LMS", "heun": "Heun", "dpm2": "DPM2", "dpm2-a": "DPM2 a",
    "dpm++sde": "DPM++ SDE", "dpm++2m-sde": "DPM++ 2M SDE",
    "dpm++2m-sde-heun": "DPM++ 2M SDE Heun", "dpm++3m-sde": "DPM++ 3M SDE",
}  # fmt: skip
UNIFORM = "Uniform"
# As diffusers' own table has them: https://huggingface.co/docs/diffusers/api/schedulers/overview
_TYPES: Mapping[str, tuple[str, ...]] = {
    "": (UNIFORM,), "karras": ("Karras",), "exponential": ("Exponential",), "beta": ("Beta",),
    "trailing": ("SGM Uniform", "Simple"), "ays": ("Align Your Steps",),
}  # fmt: skip
_AUTOMATIC: Mapping[str, str] = {
    "dpm++2m": "karras", "dpm++sde": "karras", "dpm2": "karras", "dpm2-a": "karras",
    "dpm++2m-sde": "exponential", "dpm++2m-sde-heun": "exponential", "dpm++3m-sde": "exponential",
}  # fmt: skip
_WITHOUT_TYPE = ("ddim", "pndm", "unipc")  # the web UI reads no schedule type for them


@dataclass(frozen=True)
class SamplerName:
    """A name taken apart.

    Attributes:
        sampler: a key of `SAMPLERS`.
        parts: what follows it, in their order.
        kind: of the list in `LISTS`, "" for none.
        values: of the list, falling; of sigmas without the last, which is 0.
    """

    sampler: str
    parts: tuple[str, ...] = ()
    kind: str = ""
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        name = "-".join((self.sampler, *self.parts))
        listed = ",".join(repr(value).removesuffix(".0") for value in self.values)
        return f"{name}@{self.kind}={listed}" if self.kind else name

    @property
    def steps(self) -> int | None:
        """The one number of steps that it has, if it has one."""
        return len(self.values) or (AYS_STEPS if "ays" in self.parts else None)


def draws_noise(name: str) -> bool:
    """Return whether a sampler draws noise at its steps."""
    found = parse_name(name)
    return found is not None and found.sampler in _WITH_NOISE


def parse_name(text: str) -> SamplerName | None:
    """Take a name of ours apart; None for what is none.

    Raises:
        InvalidRequestError: the sampler cannot do what follows it, or the list is none.
    """
    text, at, listed = text.strip().lower().partition("@")
    sampler, found = text, set[str]()
    while sampler not in SAMPLERS:
        sampler, dash, part = sampler.rpartition("-")
        if not dash or part in found or not any(part in each for each in _PARTS):
            return None
        found.add(part)
    parts = tuple(part for each in _PARTS for part in each if part in found)
    if refused := [part for part in parts if part not in SAMPLERS[sampler]]:
        can = ", ".join(_possible(sampler)) or "nothing"
        raise _fault(f"{sampler} cannot be followed by -{refused[0]}, by {can}")
    if any(sum(part in found for part in each) > 1 for each in _PARTS):
        raise _fault(f"{text} has two spacings: leave one out")
    if "ays" in found and len(parts) > 1:
        raise _fault(f"{text}: -ays is a spacing of its own: leave the others out")
    if not at:
        return SamplerName(sampler, parts)
    kind, values = _parse_list(sampler, listed)
    if parts:
        raise _fault(f"{text}: a list of one's own stands in place of -{parts[0]}")
    return SamplerName(sampler, (), kind, values)


def find_name(text: str, type_: str = "") -> SamplerName | None:
    """Find a sampler by our name, or by the web UI's; None when nobody calls one so.

    "dpm2" is ours; in capitals it is the web UI's, with Karras' spacing.

    Args:
        text: as "dpm++2m-karras", "DPM++ 2M Karras" or "DPM++ 2M".
        type_: schedule type of the web UI, where it is not in the text, which stands above it; ""
            and "Automatic" leave the choice to the sampler.

    Raises:
        InvalidRequestError: the sampler cannot have the type.
    """
    if text in SAMPLERS and not type_:
        return SamplerName(text)
    wanted = " ".join(text.lower().split())
    for sampler, theirs in A1111_SAMPLERS.items():
        if wanted == theirs.lower():
            return SamplerName(sampler, _parts_of_type(sampler, type_))
    for sampler, theirs in A1111_SAMPLERS.items():
        for part, types in _types(sampler):
            if wanted in [f"{theirs} {each}".lower() for each in types]:
                return SamplerName(sampler, (part,) if part else ())
    return parse_name(text)


def a1111_name(name: str) -> tuple[str, str | None]:
    """Return the web UI's sampler and schedule type of a sampler.

    The type is None where it need not be said; the name is ours where the web UI has none.
    """
    try:
        parsed = parse_name(name)
    except InvalidRequestError:
        parsed = None
    theirs = A1111_SAMPLERS.get(parsed.sampler) if parsed else None
    if parsed is None or theirs is None or parsed.kind or len(parsed.parts) > 1:
        return name, None
    part = "".join(parsed.parts)
    if part not in _TYPES:
        return name, None
    said = part or parsed.sampler in _AUTOMATIC
    return theirs, _TYPES[part][0] if said else None


def _parts_of_type(sampler: str, type_: str) -> tuple[str, ...]:
    wanted = type_.lower()
    if wanted in ("", "automatic"):
        part = _AUTOMATIC.get(sampler, "")
        return (part,) if part else ()
    if sampler in _WITHOUT_TYPE:
        return ()
    known = _types(sampler)
    for part, types in known:
        if wanted in [each.lower() for each in types]:
            return (part,) if part else ()
    names = ", ".join(each for _, types in known for each in types)
    raise _fault(f"{A1111_SAMPLERS[sampler]} has Automatic, {names}, not {type_!r:.60}")


def _types(sampler: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the schedule types that a sampler can have, by what follows its name for them."""
    return [(part, types) for part, types in _TYPES.items() if part in {"", *SAMPLERS[sampler]}]


def _possible(sampler: str) -> Iterator[str]:
    return (f"-{part}" for each in _PARTS for part in each if part in SAMPLERS[sampler])


def _parse_list(sampler: str, listed: str) -> tuple[str, tuple[float, ...]]:
    kind, _, numbers = listed.partition("=")
    kind = kind.strip()
    if kind not in LISTS:
        raise _fault(f"{sampler}@{listed:.60} is no list: write @timesteps=999,749,... or @sigmas=")
    if kind not in SAMPLERS[sampler]:
        raise _fault(f"{sampler} takes no {kind} of one's own: diffusers' scheduler does not")
    number = int if kind == "timesteps" else float
    try:
        values = tuple(number(each) for each in numbers.split(","))
    except ValueError:
        raise _fault(f"{kind} {numbers!r:.60} are no numbers with commas between them") from None
    if kind == "sigmas" and len(values) > 1 and values[-1] == 0:
        values = values[:-1]
    falling = all(after < before for before, after in pairwise(values))
    lowest, highest = (0, 10**6) if kind == "timesteps" else (1e-6, 1e6)
    if not falling or not all(lowest <= value <= highest for value in values):
        raise _fault(f"{kind} {numbers!r:.60} must fall from one to the next, none below 0")
    if len(values) > MOST_STEPS:
        raise _fault(f"{len(values)} {kind} are more than {MOST_STEPS}, the most steps")
    return kind, values


def _fault(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, field="scheduler")
