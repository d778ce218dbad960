"""How the command line words what a hint names: as options, and as commands."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, cast

from tgate_export.common.hints import Argument, Call

if TYPE_CHECKING:
    from tgate_export.bundle.manifest import Range

# Arguments of Python -> options, where the name is another than with dashes for underscores.
_OPTIONS = {
    "compute_capabilities": "sm",
    "embeddings": "embedding",
    "gpus": "gpu",
    "layer_info": "keep-layer-info",
    "library": "target",
    "loras": "lora",
    "num_inference_steps": "steps",
    "weights_stripped": "strip-weights",
    "workspace_bytes": "workspace",
}


def on_command_line(call: Call) -> str:
    """Write what a hint names as a shell reads it."""
    if isinstance(call, Argument):
        return shlex.join(_words(call.name, call.value) or [f"--{_option(call.name)}"])
    words = ["tgate-export", "build"]
    # A batch of plans is that of their graphs, and there is one option for both.
    for name, value in {**call.arguments, **call.plans}.items():
        words += _words(name, value)
    return shlex.join(words)


def _words(name: str, value: object) -> list[str]:
    """Return the option that gives an argument a value; nothing for None."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{_option(name)}"]
    if name == "size":
        return ["--size", _size(value)]
    if name in ("loras", "embeddings"):  # a file, and after a colon what is to be known of it
        files = cast("tuple[tuple[str, object], ...]", value)
        return [word for file, of in files for word in (f"--{_option(name)}", f"{file}:{of}")]
    values = value if isinstance(value, tuple) else (value,)
    return [word for one in values for word in (f"--{_option(name)}", str(one))]


def _option(name: str) -> str:
    return _OPTIONS.get(name, name.replace("_", "-"))


def _size(value: object) -> str:
    width, height = cast("tuple[Range, Range]", value)
    if width.fixed and height.fixed:
        return f"{width.opt}x{height.opt}"
    ends = ("min", "opt", "max")
    return ":".join(f"{getattr(width, end)}x{getattr(height, end)}" for end in ends)
