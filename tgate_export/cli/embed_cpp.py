"""`tgate-export embed cpp`."""

from __future__ import annotations

from pathlib import Path

import click

from tgate_export.cli._console import next_commands, spinner
from tgate_export.cli._types import BundlePath


@click.command(name="cpp")
@click.argument("bundle", type=BundlePath())
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the project: nothing, or an empty folder.",
)
def command(bundle: Path, out: Path) -> None:
    """Write a CMake project: a C++17 library and a program that generates images, without Python.

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
    next_commands(f"Wrote {out}. Next", *commands)
