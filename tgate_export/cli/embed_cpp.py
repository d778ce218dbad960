"""`tgate-export embed cpp`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from tgate_export.cli._console import spinner, stderr


@click.command(name="cpp")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the project: nothing, or an empty folder.",
)
def command(bundle: Path, out: Path) -> None:
    """Write a CMake project with a C++17 library and a program that draws; no Python, no torch.

    The bundle goes with it, as hard links where the file system allows.
    """
    from tgate_export.embed.cpp_project import BUNDLE_FOLDER, write_cpp_project

    with spinner("writing the project"):
        write_cpp_project(bundle, out)
    build = out / "build"
    commands = [
        ["cmake", "-S", out, "-B", build],
        ["cmake", "--build", build, "--parallel"],
        [build / "tgate_generate", out / BUNDLE_FOLDER, "--prompt", "..."],
    ]
    lines = [shlex.join(map(str, words)) for words in commands]
    text = "\n".join([f"Wrote {out}. Next:", *(f"  {line}" for line in lines)])
    stderr().print(text, soft_wrap=True)
