"""Turn a bundle into a CMake project: the C++ library, its example, and the bundle itself."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.plans import link_file
from tgate_export.bundle.store import check_replaceable, replace_folder
from tgate_export.common.errors import BundleError
from tgate_export.common.hints import Argument
from tgate_export.embed.bundles import files_of, open_image_bundle

SOURCES = Path(__file__).parent / "cpp"
BUNDLE_FOLDER = "bundle"
# Read by CMakeLists.txt; not needed on another machine.
MACHINE_FILE = "machine.cmake"


def write_cpp_project(bundle: str | Path, out: str | Path) -> Bundle:
    """Write a CMake project that runs a bundle, which is put beside the sources.

    The bundle's files are hard links where the file system allows, so they take no space.

    Args:
        bundle: folder that `build_bundle` wrote; it is checked first.
        out: where the project is to be: nothing, or an empty folder.

    Raises:
        BundleError: the bundle is missing or damaged, or `out` is not empty.
        InvalidRequestError: the bundle generates videos.
    """
    opened, out = open_image_bundle(bundle), Path(out)
    if out.resolve().is_relative_to(opened.path.resolve()):
        raise BundleError(
            f"{out} is in the bundle {opened.path}", "choose another ", Argument("out")
        )
    if out.is_dir() and any(out.iterdir()):
        raise BundleError(
            f"{out} is not empty", "choose another ", Argument("out"), ", or empty it"
        )
    check_replaceable(out)
    with replace_folder(out) as staging:
        shutil.copytree(SOURCES, staging, dirs_exist_ok=True)
        _write_machine_file(staging / MACHINE_FILE)
        for relative in files_of(opened):
            target = staging / BUNDLE_FOLDER / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            link_file(opened.file(relative), target)
    return opened


def _write_machine_file(path: Path) -> None:
    """Say where this machine has what programs load, as far as this Python knows."""
    lines = ["# Of the machine on which this project was written: remove it on another."]
    if (library := onnxruntime_library()) is not None:
        lines.append(
            f"set(TGATE_ONNXRUNTIME_LIBRARY [==[{library}]==] CACHE FILEPATH "
            '"libonnxruntime.so that programs load unless they are told another")'
        )
    if (folder := openvino_cmake()) is not None:
        lines.append(
            f"set(OpenVINO_DIR [==[{folder}]==] CACHE PATH "
            '"Folder of OpenVINOConfig.cmake, whose libraries programs are linked with")'
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def onnxruntime_library() -> Path | None:
    """Return the shared library of the installed `onnxruntime` package, if there is one."""
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    libraries = sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))
    return libraries[-1] if libraries else None


def openvino_cmake() -> Path | None:
    """Return the CMake package in the installed `openvino` package, if there is one."""
    spec = find_spec("openvino")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "cmake"
    return folder if (folder / "OpenVINOConfig.cmake").is_file() else None
