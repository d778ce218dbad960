"""`embed cpp`: what it writes, and that three commands make a picture of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.cpp_driver import CppBuild, configure, require_tools
from tgate_export import __version__
from tgate_export.bundle.integrity import open_bundle
from tgate_export.common.errors import BundleError
from tgate_export.embed.cpp_project import SOURCES, openvino_cmake, write_cpp_project

CONSUMER = """
cmake_minimum_required(VERSION 3.22)
project(consumer LANGUAGES CXX)
find_package(tgate {version} REQUIRED)
add_executable(consumer consumer.cpp)
target_link_libraries(consumer PRIVATE tgate::tgate)
"""


def test_the_project_holds_the_sources_and_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "myapp"
    write_cpp_project(tiny_bundle, out)
    copied = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert {path.relative_to(SOURCES) for path in SOURCES.rglob("*") if path.is_file()} < copied
    bundle = open_bundle(out / "bundle")
    weights = bundle.manifest.graph("full").weights
    assert weights is not None
    assert os.path.samefile(bundle.file(weights), tiny_bundle / weights)
    assert "libonnxruntime.so" in (out / "machine.cmake").read_text()


def test_plans_go_with_the_bundle(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    from tests.bundle.test_plans import Plan, hash_file, key, write_record

    folder = tiny_bundle_copy / "plans" / "set"
    folder.mkdir(parents=True)
    (folder / "full.plan").write_bytes(b"engine")
    its = key(tiny_bundle_copy, "full")
    content = hash_file(folder / "full.plan")
    plan = Plan(file="full.plan", content=content, key=its, key_sha256=its.digest())
    write_record(folder, {"full": plan})
    write_cpp_project(tiny_bundle_copy, tmp_path / "myapp")
    open_bundle(tmp_path / "myapp" / "bundle")
    assert (tmp_path / "myapp" / "bundle" / "plans" / "set" / "full.plan").is_file()


def test_an_empty_folder_is_filled_and_another_is_not(tiny_bundle: Path, tmp_path: Path) -> None:
    (out := tmp_path / "myapp").mkdir()
    write_cpp_project(tiny_bundle, out)
    before = sorted(out.rglob("*"))
    with pytest.raises(BundleError, match="myapp is not empty: choose another out, or"):
        write_cpp_project(tiny_bundle, out)
    assert sorted(out.rglob("*")) == before


def test_a_damaged_bundle_leaves_nothing(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    (tiny_bundle_copy / "graphs" / "sampler.onnx").unlink()
    with pytest.raises(BundleError, match=r"sampler\.onnx is missing"):
        write_cpp_project(tiny_bundle_copy, tmp_path / "myapp")
    assert sorted(tmp_path.iterdir()) == [tiny_bundle_copy]


def test_the_bundle_itself_is_no_place(tiny_bundle_copy: Path) -> None:
    with pytest.raises(BundleError, match="is in the bundle"):
        write_cpp_project(tiny_bundle_copy, tiny_bundle_copy / "myapp")
    open_bundle(tiny_bundle_copy)


def test_the_command_says_what_to_do_next(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "my app"
    result = run(capsys, "embed", "cpp", tiny_bundle, "--out", out)
    assert result.code == 0
    assert f"cmake -S '{out}' -B '{out}/build'" in result.err
    assert run(capsys, "embed", "cpp", tiny_bundle).code == 2
    failed = run(capsys, "embed", "cpp", tmp_path / "nothing", "--out", tmp_path / "x")
    assert (failed.code, failed.err.count("\n")) == (1, 1)


def test_the_version_is_that_of_the_package() -> None:
    found = re.search(r"project\(tgate VERSION (\S+)", (SOURCES / "CMakeLists.txt").read_text())
    assert found is not None
    assert found[1] == __version__


def test_every_source_is_compiled() -> None:
    listed = "".join(
        path.read_text() for path in (SOURCES / "CMakeLists.txt", *SOURCES.glob("cmake/*.cmake"))
    )
    for path in [*SOURCES.glob("src/**/*.cpp"), *SOURCES.glob("examples/*.cpp")]:
        assert path.relative_to(SOURCES).as_posix() in listed


def succeed(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_configuring_without_a_network(tmp_path: Path) -> None:
    """ONNX Runtime's header cannot be had; OpenVINO's are here."""
    require_tools()
    done = subprocess.run(
        ["cmake", "-S", SOURCES, "-B", tmp_path, f"-DOpenVINO_DIR={openvino_cmake()}",
         "-DCMAKE_IGNORE_PATH=/usr/include/onnxruntime;/usr/local/include/onnxruntime"],
        env=os.environ | dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "could not be downloaded" in done.stdout
    assert "Backend openvino: yes" in done.stdout
    assert "WARNING" not in done.stderr.upper()


def test_the_installed_program_runs_wherever_it_is(
    cpp_build: CppBuild, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A copy draws with either backend, finds all in itself, and names no folder of ours."""
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    succeed("cmake", "--install", cpp_build.driver.parent, "--prefix", installed)
    installed.rename(elsewhere)
    program = elsewhere / "bin" / "tgate_generate"
    content = program.read_bytes()
    for folder in (installed, cpp_build.driver.parent, sys.prefix, openvino_cmake()):
        assert str(folder).encode() not in content
    for backend in ("onnxruntime", "openvino"):
        picture = elsewhere / f"{backend}.png"
        done = subprocess.run(
            [program, tiny_bundle, "--prompt", "x", "--steps", "2", "--backend", backend, "--out",
             picture],
            env={"PATH": "/usr/bin:/bin", "LD_DEBUG": "libs"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert picture.exists(), done.stderr[-1000:]
        loaded = re.findall(r"calling init: (/.*)", done.stderr)
        assert any("/tgate/libo" in path for path in loaded)
        assert all(path.startswith(("/lib", "/usr/lib", str(elsewhere))) for path in loaded)


@pytest.mark.slow
def test_three_commands_make_a_picture_and_a_program_of_ones_own(
    shapes_bundle: Path, tmp_path: Path
) -> None:
    require_tools()
    out = tmp_path / "myapp"
    write_cpp_project(shapes_bundle, out)
    configured = configure(out, out / "build", f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'installed'}")
    assert configured.returncode == 0, configured.stderr
    succeed("cmake", "--build", out / "build", "--parallel", 2)
    picture = out / "x.png"
    succeed(out / "build" / "tgate_generate", out / "bundle", "--prompt", "a red circle", "--out",
            picture)  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")

    succeed("cmake", "--install", out / "build")
    # The program of the documentation.
    page = (SOURCES.parents[2] / "docs" / "embed-cpp.md").read_text(encoding="utf-8")
    program = re.search(r"```cpp\n(#include <tgate/pipeline.hpp>\n\nint main.*?)```", page, re.S)
    assert program is not None
    (own := tmp_path / "own").mkdir()
    (own / "consumer.cpp").write_text(program[1])
    (own / "CMakeLists.txt").write_text(CONSUMER.format(version=__version__))
    succeed("cmake", "-S", own, "-B", own / "build",
            f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}")  # fmt: skip
    succeed("cmake", "--build", own / "build")
    shutil.rmtree(out / "build")
    succeed(own / "build" / "consumer", cwd=tmp_path)
    assert (tmp_path / "circle.png").read_bytes().startswith(b"\x89PNG")
