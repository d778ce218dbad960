"""What many tests share: a very small random Stable Diffusion pipeline, and its bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.once import alone, common_folder, made_once
from tests.support.tiers import is_quick, link_cache, refuse_to_build

# The models here are so small that a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from tgate_export import TGatePipeline

# Every backend that runs whole pipelines without a GPU; tests that take `cpu_backend` run on each.
CPU_BACKENDS = ("onnxruntime:cpu", "openvino")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests that need no bundle")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        config.hook.pytest_deselected(items=[item for item in items if not is_quick(item)])
        items[:] = [item for item in items if is_quick(item)]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> None:
    """Keep what tests keep for one another apart from the user's."""
    folder = common_folder(tmp_path_factory) / "cache"
    with alone(tmp_path_factory, "cache"):
        link_cache(folder)
    os.environ["TGATE_EXPORT_CACHE"] = str(folder)
    os.environ.pop("TGATE_EXPORT_CACHE_SIZE", None)
    if pytestconfig.getoption("--quick"):
        from tgate_export.export import onnx_export

        # For tests that were not seen to build.
        onnx_export.torch.onnx.export = refuse_to_build  # type: ignore[assignment]


@pytest.fixture(scope="module")
def plain_sessions() -> Iterator[None]:
    """Let ONNX Runtime run graphs as they are written: other kernels round in other ways."""
    from tgate_export.runtime.backends.onnxruntime_sessions import Sessions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sessions, "_for_cpu", lambda _self, _graph, path, _options: str(path))
        yield


@pytest.fixture(scope="module", params=CPU_BACKENDS)
def cpu_backend(request: pytest.FixtureRequest) -> str:
    """A name for `--backend`."""
    name: str = request.param
    pytest.importorskip(name.partition(":")[0])
    return name


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The diffusers folder of a tiny Stable Diffusion 1.5; shared, so not to be changed."""
    from tests.support import tiny

    return made_once(tmp_path_factory, "pipelines/tiny", lambda folder: tiny.save("sd15", folder))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle built from `tiny_pipeline_dir`; shared, so not to be changed."""
    from tgate_export.build.build import build_bundle

    return made_once(
        tmp_path_factory, "bundles/tiny", lambda out: build_bundle(str(tiny_pipeline_dir), out=out)
    )


@pytest.fixture(scope="session")
def reuse_bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from `tiny_pipeline_dir` with the graphs that reuse self-attention; shared."""
    from tgate_export.build.build import build_bundle

    gating = {"gate_step": 10, "sp_interval": 5, "fi_interval": 2, "warm_up": 2}
    return made_once(
        tmp_path_factory, "bundles/reuse",
        lambda out: build_bundle(str(tiny_pipeline_dir), out=out, **gating),
    )  # fmt: skip


@pytest.fixture
def tiny_bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own, to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def tiny_dynamic_bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for images 16 to 40 pixels wide and 16 to 48 high; shared, so not to be changed."""
    from tgate_export.build.build import build_bundle
    from tgate_export.bundle.manifest import Range

    sides = Range(min=16, opt=24, max=40), Range(min=16, opt=32, max=48)
    return made_once(
        tmp_path_factory, "bundles/dynamic",
        lambda out: build_bundle(str(tiny_pipeline_dir), size=sides, out=out),
    )  # fmt: skip


@pytest.fixture(scope="session")
def image_bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of it whose runs may begin with a picture; shared, so not to be changed."""
    from tests.support import tiny
    from tgate_export.build.build import build_bundle

    with tiny.only_samplers("ddim", "euler", "euler-a", "dpm++2m", "pndm"):
        return made_once(
            tmp_path_factory, "bundles/image-to-image-sd15",
            lambda out: build_bundle(str(tiny_pipeline_dir), image_to_image=True, out=out),
        )  # fmt: skip


@pytest.fixture(scope="session")
def chunks_bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of it for prompts of up to three chunks; shared, so not to be changed."""
    from tests.support import tiny
    from tgate_export.build.build import build_bundle

    with tiny.only_samplers("ddim", "euler"):
        return made_once(
            tmp_path_factory, "bundles/chunks",
            lambda out: build_bundle(str(tiny_pipeline_dir), prompt_chunks=3, out=out),
        )  # fmt: skip


@pytest.fixture(scope="session")
def hires_bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for pictures of 16 to 48 pixels; shared, so not to be changed."""
    from tests.support import tiny
    from tgate_export.build.build import build_bundle
    from tgate_export.bundle.manifest import Range

    size = (Range(min=16, opt=16, max=48),) * 2
    with tiny.only_samplers("ddim", "euler", "euler-a", "dpm++2m", "pndm"):
        return made_once(
            tmp_path_factory, "bundles/hires",
            lambda out: build_bundle(
                str(tiny_pipeline_dir), image_to_image=True, size=size, out=out
            ),
        )  # fmt: skip


@pytest.fixture(scope="session")
def sdxl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The diffusers folder of a tiny SDXL; shared, so not to be changed."""
    from tests.support import tiny

    return made_once(tmp_path_factory, "pipelines/sdxl", lambda out: tiny.save("sdxl", out))


@pytest.fixture(scope="session")
def refiner_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a tiny refiner for it."""
    from tests.support import tiny

    return made_once(
        tmp_path_factory, "pipelines/refiner", lambda out: tiny.save("sdxl-refiner", out)
    )


@pytest.fixture(scope="session")
def sdxl_bundle(sdxl_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny SDXL, for pictures of 16 to 32 pixels that may begin with one."""
    from tests.support import tiny
    from tgate_export.build.build import build_bundle
    from tgate_export.bundle.manifest import Range

    size = (Range(min=16, opt=16, max=32),) * 2
    with tiny.only_samplers("ddim", "euler", "dpm++2m", "pndm"):
        return made_once(
            tmp_path_factory, "bundles/hires-sdxl",
            lambda out: build_bundle(str(sdxl_dir), image_to_image=True, size=size, out=out),
        )  # fmt: skip


@pytest.fixture(scope="session")
def refiner_bundle(refiner_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny refiner."""
    from tests.support import tiny
    from tgate_export.build.build import build_bundle

    with tiny.only_samplers("ddim", "euler", "dpm++2m", "pndm"):
        return made_once(
            tmp_path_factory, "bundles/refiner",
            lambda out: build_bundle(str(refiner_dir), out=out),
        )  # fmt: skip


@pytest.fixture(scope="session")
def shapes_dir() -> Path:
    """The trained demo pipeline in the package."""
    from tgate_export.data import SHAPES_DIR

    return SHAPES_DIR


@pytest.fixture(scope="session")
def shapes_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the trained demo pipeline; shared, so not to be changed."""
    from tgate_export.build.build import build_bundle

    return made_once(
        tmp_path_factory, "bundles/shapes", lambda out: build_bundle("shapes", out=out)
    )


@pytest.fixture(scope="session")
def shapes_pipeline(shapes_bundle: Path) -> TGatePipeline:
    """The demo pipeline, loaded."""
    from tgate_export import TGatePipeline

    return TGatePipeline.from_bundle(shapes_bundle, "onnxruntime:cpu")
