"""A backend is one module: the registry and the command line know of it by its specs alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tgate_export
from tests.support.command import run
from tgate_export.bundle.integrity import open_bundle
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime import backends
from tgate_export.runtime.backends.base import BackendError, BackendOptions
from tgate_export.runtime.pipeline import TGatePipeline

# The reference implementation of ONNX, in numpy: no engine at all.
MADE_UP = '''
from functools import partial

from tgate_export.runtime.backends.base import Backend, BackendError
from tgate_export.runtime.backends.host_memory import HostMemory
from tgate_export.runtime.backends.spec import BackendSpec


class Reference(Backend):
    def __init__(self, bundle, options):
        super().__init__()
        self.name = "reference"
        self.threads = options.threads
        self._bundle = bundle
        self._graphs = {}

    def allocate(self, plan):
        from onnx.reference import ReferenceEvaluator

        for launch in plan.launches:
            if launch.graph not in self._graphs:
                file = self._bundle.file(self._bundle.manifest.graph(launch.graph).file)
                self._graphs[launch.graph] = ReferenceEvaluator(str(file))
        return HostMemory(plan.buffers)

    def prepare(self, launch, memory, batch=None):
        return partial(self._run, self._graphs[launch.graph], launch, memory)

    def _run(self, graph, launch, memory):
        inputs = {name: memory.read(buffer) for name, buffer in launch.inputs.items()}
        outputs = dict(zip(graph.output_names, graph.run(None, inputs), strict=True))
        for name, buffer in launch.outputs.items():
            memory.write(buffer, outputs[name])


def no_luck():
    raise BackendError("the stars are wrong", "wait")


SPECS = (
    BackendSpec(
        name="reference", summary="numpy, slowly", module="onnx", extras=("bench",),
        make=Reference, options={"threads": (1, 2)}, auto=1,
    ),
    BackendSpec(
        name="reference:never", summary="nothing", module="onnx", extras=("bench",),
        make=Reference, check=no_luck, auto=0,
    ),
    BackendSpec(
        name="reference:missing", summary="nothing", module="no_such_module", extras=("triton",),
        make=Reference,
    ),
)
'''  # fmt: skip


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module more in the folder of the backends."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "made_up.py").write_text(MADE_UP)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(folder)])
    backends.specs.cache_clear()
    yield
    backends.specs.cache_clear()
    monkeypatch.delitem(sys.modules, f"{backends.__name__}.made_up", raising=False)
    monkeypatch.delattr(backends, "made_up", raising=False)


@pytest.mark.usefixtures("made_up")
def test_the_command_line_runs_it(
    tiny_bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--prompt", "a fox", "--steps", 2, "--gate-step", 1, "--seed", 3, "--json"]
    pictures = {}
    for name in ("reference", "onnxruntime:cpu"):
        out = tmp_path / f"{name.partition(':')[0]}.png"
        options = [*call, "--backend", name, "--threads", 1, "--out", out]
        report = run(capsys, "generate", tiny_bundle_copy, *options).json()
        assert report["backend"] == name
        pictures[name] = np.asarray(Image.open(out)).astype(int)
    # Two implementations of the same graphs: rounding may move a value over the edge of 8 bits.
    assert np.abs(np.subtract(*pictures.values())).max() <= 1
    assert np.ptp(pictures["reference"]) > 0


@pytest.mark.usefixtures("made_up")
def test_auto_ranks_it_and_says_what_it_passed_over(tiny_bundle: Path) -> None:
    backend = backends.select("auto", open_bundle(tiny_bundle))
    assert backend.name == "reference"
    assert backend.reason == ("the fastest that works here (reference:never: the stars are wrong)")
    assert backends.names()[:3] == ("auto", "reference:never", "reference")


@pytest.mark.usefixtures("made_up")
def test_auto_gives_a_precision_to_those_that_take_it(tiny_bundle: Path) -> None:
    pytest.importorskip("openvino")
    options = BackendOptions(precision="fp32")
    assert backends.select("auto", open_bundle(tiny_bundle), options).name == "openvino"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "reference",
            {"threads": 3},
            "reference does not take threads 3: threads is for auto, openvino, ",
        ),
        (
            "onnxruntime:cuda",
            {"threads": 2},
            "onnxruntime:cuda does not take threads 2: threads is for auto, reference, ",
        ),
        (
            "reference",
            {"cuda_graphs": False},
            "cuda_graphs=False is for auto, tensorrt, tensorrt-rtx and onnxruntime:cuda$",
        ),
        ("Reference", {}, "did you mean reference:never or reference"),
    ],
)
@pytest.mark.usefixtures("made_up")
def test_what_it_does_not_take_is_refused(
    tiny_bundle: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        backends.select(name, open_bundle(tiny_bundle), BackendOptions(**options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("made_up")
def test_where_it_cannot_be_used(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("generate", tiny_bundle, "--prompt", "x", "--backend")
    result = run(capsys, *call, "reference:never")
    assert (result.code, result.error()) == (1, "error: the stars are wrong: wait")
    result = run(capsys, *call, "reference:missing")
    assert result.error().startswith("error: no_such_module is not installed: pip install ")
    assert result.error().endswith("'tritonclient[grpc]>=2.50', or use --backend auto")
    with pytest.raises(BackendError, match=r"or use backend='auto'$"):
        TGatePipeline.from_bundle(tiny_bundle, "reference:missing")


@pytest.mark.usefixtures("made_up")
def test_it_is_listed(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(run(capsys, "bench", "--help").out.split())
    assert "reference (numpy, slowly)" in text
    result = run(capsys, "generate", tiny_bundle, "--prompt", "x", "--backend", "nonsense")
    assert "choose one of auto, reference:never, reference, " in result.error()
    result = run(capsys, "embed", "triton", tiny_bundle, "--out", "r", "--backend", "nonsense")
    assert "reference" in result.error()


def test_every_option_is_taken_and_every_extra_is_there() -> None:
    project = Path(tgate_export.__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    known = {field.name for field in fields(BackendOptions)}
    taken = {option for spec in backends.specs().values() for option in spec.options}
    assert taken == known
    assert all(field.metadata["help"] for field in fields(BackendOptions))
    assert all(
        spec.extras and set(spec.extras) <= set(extras) for spec in backends.specs().values()
    )


def test_specs_import_no_engine() -> None:
    engines = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "google", "onnx")
    code = (
        "import sys\nfrom tgate_export.runtime.backends import specs\n"
        f"assert len(specs()) > 5\nprint(sorted(set({engines!r}) & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found == "[]\n"
