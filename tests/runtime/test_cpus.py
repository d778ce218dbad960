"""How many threads engines get where a container may use fewer processors than it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.command import run
from tgate_export.bundle.integrity import open_bundle
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime import cpus
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import BackendOptions
from tgate_export.runtime.backends.openvino import OpenVinoBackend
from tgate_export.runtime.pipeline import TGatePipeline


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 processors whose control groups are files below this folder."""
    monkeypatch.setattr(cpus, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "_MOUNT", tmp_path)
    monkeypatch.setattr(cpus, "processors", lambda: 64)
    return tmp_path


def write(groups: Path, listed: str, files: dict[str, str]) -> None:
    (groups / "cgroup").write_text(listed)
    for name, content in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(content)


V1 = "12:cpu,cpuacct:/docker/x\n5:cpuset:/docker/x\n1:name=systemd:/docker/x\n"


QUOTAS: list[tuple[str, dict[str, str], int | None]] = [
    ("0::/\n", {}, None),  # as on a host
    ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
    ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    ("0::/\n", {"cpu.max": "9900000 100000\n"}, None),  # more than there are
    ("0::/pod/box\n", {"pod/box/cpu.max": "max 1000", "pod/cpu.max": "3000 1000"}, 3),
    ("0::/pod/box\n", {"pod/box/cpu.max": "8000 1000", "pod/cpu.max": "30000 1000"}, 8),
    ("0::/pod/box\n", {"cpu.max": "400000 100000"}, 4),  # the group is the container's root
    (
        V1,
        {"cpu/docker/x/cpu.cfs_quota_us": "300000", "cpu/docker/x/cpu.cfs_period_us": "100000"},
        3,
    ),
    (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "5000", "cpu,cpuacct/cpu.cfs_period_us": "1000"}, 5),
    (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ("0::/\n", {"cpu.max": ""}, None),
    ("0::/\n", {"cpu.max": "2 0\n"}, None),
    ("no such format", {"cpu.max": "two"}, None),
]


@pytest.mark.parametrize(("listed", "files", "expected"), QUOTAS)
def test_quotas(groups: Path, listed: str, files: dict[str, str], expected: int | None) -> None:
    write(groups, listed, files)
    assert cpus.quota() == expected


def test_without_control_groups(groups: Path) -> None:
    assert cpus.quota() is None


def threads_of_sessions(bundle: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> set[int]:
    import onnxruntime

    seen = set()

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, model: Any, sess_options: Any, **more: Any) -> None:
            seen.add(sess_options.intra_op_num_threads)
            super().__init__(model, sess_options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    pipeline = TGatePipeline.from_bundle(
        bundle, "onnxruntime:cpu", options=BackendOptions(**options)
    )
    pipeline("a fox", num_inference_steps=1, gate_step=1)
    return seen


def test_threads_of_onnxruntime(
    tiny_bundle: Path, groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert threads_of_sessions(tiny_bundle, monkeypatch) == {0}  # as many as it likes
    assert threads_of_sessions(tiny_bundle, monkeypatch, threads=3) == {3}
    write(groups, "0::/\n", {"cpu.max": "200000 100000\n"})
    assert threads_of_sessions(tiny_bundle, monkeypatch) == {2}
    assert threads_of_sessions(tiny_bundle, monkeypatch, threads=3) == {3}


def test_threads_of_openvino(tiny_bundle: Path, groups: Path) -> None:
    pytest.importorskip("openvino")

    def threads(number: int | None = None) -> int:
        options = BackendOptions(threads=number)
        pipeline = TGatePipeline.from_bundle(tiny_bundle, "openvino", options=options)
        pipeline("a fox", num_inference_steps=1, gate_step=1)
        backend = pipeline.backend
        assert isinstance(backend, OpenVinoBackend)
        (found,) = {
            entry.model.get_property("INFERENCE_NUM_THREADS")
            for entry in backend._graphs._compiled.values()
        }
        return int(found)

    assert threads(1) == 1
    write(groups, "0::/\n", {"cpu.max": "100000 100000\n"})
    assert threads() == 1


def test_threads_are_for_cpus(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    for name in ("tensorrt", "onnxruntime:cuda"):
        with pytest.raises(
            InvalidRequestError, match=f"{name} does not take threads 2: .* auto, openvino,"
        ):
            select(name, bundle, BackendOptions(threads=2))
    with pytest.raises(InvalidRequestError, match="threads must be 1 or more, got 0"):
        BackendOptions(threads=0)


def test_the_command_takes_threads(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = []
    original = TGatePipeline.from_bundle

    def from_bundle(path: Any, backend: str, *, options: BackendOptions) -> TGatePipeline:
        seen.append(options.threads)
        return original(path, backend, options=options)

    monkeypatch.setattr(TGatePipeline, "from_bundle", from_bundle)
    arguments = ["--prompt", "a fox", "--steps", "1", "--backend", "onnxruntime:cpu"]
    arguments += ["--out", str(tmp_path / "x.png")]
    assert run(capsys, "generate", tiny_bundle, *arguments, "--threads", 1).code == 0
    assert seen == [1]
