"""The served model in trouble: everybody is answered, and nobody waits for others."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.embed.triton.stand_in import (
    InferenceResponse,
    Request,
    Sender,
    Tensor,
    arguments,
    utils,
)
from tests.support.cpu_for_cuda import rows_read, with_cpu_for_cuda
from tgate_export import TGatePipeline
from tgate_export.embed.triton import encoders
from tgate_export.embed.triton.devices import visible_device
from tgate_export.embed.triton.repository import write_repository
from tgate_export.runtime.backends import BackendError
from tgate_export.runtime.batching import Batcher
from tgate_export.runtime.model_runner import ModelRunner

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tiny_bundle, tmp_path_factory.mktemp("models"), name="tiny")


@pytest.fixture
def log() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def module(log: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`tgate_export.embed.triton.model`, as a server imports it."""
    name = "tgate_export.embed.triton.model"
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils(log))
    monkeypatch.delitem(sys.modules, name, raising=False)
    import importlib

    module = importlib.import_module(name)
    yield module
    sys.modules.pop(name, None)


@pytest.fixture
def start(module: Any, repository: Path) -> Iterator[Start]:
    """Return a function that starts a model with parameters; it ends with the test."""
    models = []

    def start(**parameters: str) -> Any:
        model = module.TGateModel()
        model.initialize(arguments(repository, **parameters))
        models.append(model)
        return model

    yield start
    for model in models:
        if model._batcher.alive:
            model.finalize()


def request(sender: Sender | None = None, **inputs: Any) -> Request:
    return Request(sender or Sender(), **{"prompt": "a", "steps": 1, "format": "raw", **inputs})


def finals(*requests: Request) -> list[Any]:
    return [request.sender.error() for request in requests]


class Panic(BaseException):
    """As tokenizers raises."""


def test_a_panic_is_one_requests_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real = start(), Batcher.submit

    def submit(self: Batcher, request: Any, **options: Any) -> Any:
        if request.prompts == ("bad",):
            raise Panic("index out of range")
        return real(self, request, **options)

    monkeypatch.setattr(Batcher, "submit", submit)
    requests = [request(), request(prompt="bad"), request()]
    model.execute(requests)
    first, bad, last = finals(*requests)
    assert (first, last) == (None, None)
    assert "index out of range" in str(bad)
    assert bad.code == "INT"


@pytest.mark.parametrize("images", ["raw", "png"])
def test_a_response_that_cannot_be_sent(
    start: Start, log: list[dict[str, Any]], images: str
) -> None:
    """Shared memory is full, say, which has room for an error."""

    def no_room(response: InferenceResponse | None) -> None:
        if response is not None and response.error is None:
            raise RuntimeError("Failed to increase the pool 'triton_python_backend_shm_region_1'")

    model = start()
    requests = [request(), request(Sender(no_room), format=images), request()]
    model.execute(requests)
    first, bad, last = finals(*requests)
    assert (first, last) == (None, None)
    assert "could not be sent: ask for fewer images" in str(bad)
    assert "shm_region" not in str(bad)
    assert any("shm_region" in line.get("error", "") for line in log)
    model.finalize()
    assert not model._exchanges


def test_an_end_when_there_is_no_room_for_a_word(start: Start) -> None:
    def no_room(response: InferenceResponse | None) -> None:
        if response is not None:
            raise MemoryError

    model = start()
    served, refused = (request(Sender(no_room), steps=steps) for steps in (1, -1))
    model.execute([served, refused])
    assert finals(served, refused) == [None, None]
    assert not served.sender.got
    after = request()
    model.execute([after])
    assert finals(after) == [None]


def test_pictures_do_not_hold_up_others(
    start: Start, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, go_on = module.encode_picture, threading.Event()

    def png(*arguments: Any) -> bytes:
        assert go_on.wait(60)
        return bytes(real(*arguments))

    monkeypatch.setattr(module, "encode_picture", png)
    model = start()
    many = request(num_images=20, format="png")
    model.execute([many])
    raw = request()
    model.execute([raw])
    assert finals(raw) == [None]
    assert not many.sender.final.is_set()
    go_on.set()
    assert finals(many) == [None]
    files = many.sender.got[0].tensors["png"]
    assert [Image.open(io.BytesIO(file)).size for file in files] == [(16, 16)] * 20


def test_pictures_take_turns(start: Start, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants one picture waits for a few of those who want many, not for all."""
    real, made = module.encode_picture, []
    few_made, few_asked = threading.Event(), threading.Event()

    def png(*arguments: Any) -> bytes:
        made.append(arguments)
        if len(made) == 4:
            few_made.set()
            assert few_asked.wait(60)
        return bytes(real(*arguments))

    monkeypatch.setattr(module, "encode_picture", png)
    monkeypatch.setattr(encoders, "THREADS", 1)
    ended: list[tuple[str, int]] = []
    model = start()
    many, one = (
        request(Sender(lambda _, name=name: ended.append((name, len(made)))), num_images=count,
                format="png")
        for name, count in (("many", 60), ("one", 1))
    )  # fmt: skip
    model.execute([many])
    assert few_made.wait(60)
    model.execute([one])
    while model._encoders._works.qsize() < 1:  # one is queued behind what many waits for
        assert not few_asked.wait(0.01)
    few_asked.set()
    assert finals(many, one) == [None, None]
    (first, pictures), (last, _) = ended
    assert (first, last) == ("one", "many")
    assert pictures < 60


def test_finalize_finishes_pictures(start: Start) -> None:
    model = start()
    requests = [request(num_images=8, format="base64") for _ in range(4)]
    model.execute(requests)
    model.finalize()
    assert all(request.sender.final.is_set() for request in requests)
    assert finals(*requests) == [None] * 4


class Held:
    """A client that is slow to take what it is sent."""

    def __init__(self) -> None:
        self.go_on, self.reached = threading.Event(), threading.Event()
        self.sender = Sender(self._wait)

    def _wait(self, _: object) -> None:
        self.reached.set()
        assert self.go_on.wait(60)


def test_progress_that_waits_is_bounded(
    start: Start, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client misses steps that could not be sent in time, and gets its result."""
    previews = 10
    size = module._MESSAGE_BYTES + 4 * 8 * 8 * 4
    monkeypatch.setattr(module, "_PROGRESS_BYTES", previews * size)
    held = Held()
    model = start()
    slow = request(held.sender, steps=50, progress=True, preview=True)
    model.execute([slow])
    assert held.reached.wait(60)
    (exchange,) = model._exchanges
    exchange.future.result(60)
    assert model._outbox.qsize() <= previews + 1
    held.go_on.set()
    assert finals(slow) == [None]
    *progress, result = held.sender.got
    assert 1 <= len(progress) <= previews + 1
    assert "images" in result.tensors
    model.finalize()
    assert model._progress_bytes == 0


def test_answers_that_wait_are_bounded(start: Start) -> None:
    held = Held()
    model = start(max_pending="2")
    first = request(held.sender, num_images=2)
    model.execute([first])
    assert held.reached.wait(60)
    second = request(num_images=2)
    model.execute([second])
    for exchange in list(model._exchanges):
        exchange.future.result(60)  # both are done, and wait
    third = request()
    model.execute([third])
    (refused,) = finals(third)
    assert refused.code == "UNAVAILABLE"
    assert "4 images are pending or wait to be sent, no room for 1 more: try" in str(refused)
    held.go_on.set()
    assert finals(first, second) == [None, None]
    again = request()
    model.execute([again])
    assert finals(again) == [None]


def test_a_full_queue_says_when_to_try_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    model = start(max_pending="1")
    real, go_on, running = ModelRunner.run, threading.Event(), threading.Event()

    def run(*arguments: Any) -> float:
        running.set()
        assert go_on.wait(60)
        return real(*arguments)

    monkeypatch.setattr(ModelRunner, "run", run)
    first, second = request(), request()
    model.execute([first])
    assert running.wait(60)
    model.execute([second])
    (refused,) = finals(second)
    go_on.set()
    assert finals(first) == [None]
    assert refused.code == "UNAVAILABLE"
    assert str(refused) == ("1 of 1 images are pending, no room for 1 more: try again in about 1 s")


def test_the_most_of_one_request(start: Start) -> None:
    model = start(max_images="2")
    requests = [request(num_images=count) for count in (2, 3)]
    model.execute(requests)
    good, bad = finals(*requests)
    assert (good, bad.code) == (None, "INVALID_ARG")
    assert str(bad) == "3 images in a request, at most 2 are served"


@pytest.mark.parametrize(
    ("error", "message", "reason"),
    [
        (
            RuntimeError("/secret/path is wrong\nsecond line"),
            "RuntimeError: the server's log has",
            "RuntimeError: /secret/path is wrong",
        ),
        (
            MemoryError(),
            "out of memory: ask for fewer or smaller images",
            "MemoryError: MemoryError",
        ),
    ],
)
def test_what_libraries_say_is_for_the_log(
    start: Start, log: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    error: Exception, message: str, reason: str,
) -> None:  # fmt: skip
    model = start()

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ModelRunner, "run", fail)
    bad = request()
    model.execute([bad])
    (found,) = finals(bad)
    assert found.code == "INT"
    assert str(found).startswith(message)
    reasons = [line["error"] for line in log if line["event"] == "error"]
    assert reasons == [
        f"{type(error).__name__}: {str(error).partition(chr(10))[0] or 'MemoryError'}"
    ]


@pytest.mark.usefixtures("plain_sessions")
def test_rows_stay_on_the_device(
    start: Start, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moves between calls of changing images is not read to the host; results are."""
    expected = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    with_cpu_for_cuda(monkeypatch)
    model = start(backend="onnxruntime:cuda", max_batch="2")
    read = rows_read(monkeypatch)
    requests = [request(seed=seed, steps=3 + seed, gate_step=2, format="latents")
                for seed in range(5)]  # fmt: skip
    model.execute(requests)
    assert finals(*requests) == [None] * 5
    assert read == ["(4, 8, 8)"] * 5
    for seed, each in enumerate(requests):
        alone = expected(
            "a", seed=seed, num_inference_steps=3 + seed, gate_step=2, output_type="latent"
        )
        found = each.sender.got[0].tensors["latents"]
        np.testing.assert_allclose(found, np.asarray(alone.images), atol=1e-4)


def test_prompts_of_several_chunks(module: Any, chunks_bundle: Path, tmp_path: Path) -> None:
    """Beside plain ones, in the same calls; and embeddings of two chunks."""
    expected = TGatePipeline.from_bundle(chunks_bundle, "onnxruntime:cpu")
    model = module.TGateModel()
    model.initialize(arguments(write_repository(chunks_bundle, tmp_path, name="chunks")))
    long = "a (red:1.4) circle, " * 8
    embeds = np.random.default_rng(0).standard_normal((1, 154, 32), dtype=np.float32)
    cases: list[dict[str, Any]] = [
        {"prompt": long, "prompt_syntax": "a1111", "negative_prompt": "[blue]"},
        {"prompt": "a (red:1.4) circle", "negative_prompt": "[blue]"},
        {"prompt": None},
    ]
    requests = [
        request(**{**case, "prompt": case["prompt"] or "", "format": "latents", "steps": 2}
                | {"seed": seed})
        for seed, case in enumerate(cases)
    ]  # fmt: skip
    cases[2]["prompt_embeds"] = embeds
    del requests[2].inputs["prompt"]
    requests[2].inputs["prompt_embeds"] = Tensor("prompt_embeds", embeds)
    bad = request(prompt="a (b", prompt_syntax="a1111")
    try:
        model.execute([*requests, bad])
        *done, refused = finals(*requests, bad)
    finally:
        model.finalize()
    assert done == [None] * 3
    assert refused.code == "INVALID_ARG"
    assert "prompt: '(' at character 3 is not closed" in str(refused)
    for seed, (each, case) in enumerate(zip(requests, cases, strict=True)):
        alone = expected(num_inference_steps=2, seed=seed, output_type="latent", **case)
        found = each.sender.got[0].tensors["latents"]
        np.testing.assert_allclose(found, np.asarray(alone.images), atol=1e-4)


def test_what_is_no_input_is_refused(start: Start) -> None:
    model = start()
    wrong = request()
    wrong.fields = {"stepz": 5, "id": "mine"}
    model.execute([wrong])
    (refused,) = finals(wrong)
    assert refused.code == "INVALID_ARG"
    assert "unknown field 'stepz': there are prompt, negative_prompt" in str(refused)


def test_pictures_are_base64_unless_asked_for_otherwise(start: Start) -> None:
    model = start()
    plain = request()
    del plain.inputs["format"]
    model.execute([plain])
    assert finals(plain) == [None]
    tensors = plain.sender.got[0].tensors
    assert set(tensors) == {"png", "seed", "timings"}
    (file,) = tensors["png"]
    picture = Image.open(io.BytesIO(base64.b64decode(file)))
    assert np.asarray(picture).shape == (16, 16, 3)
    (seed,) = tensors["seed"]
    assert json.loads(picture.text["tgate-export"])["seed"] == seed  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("visible", "instance", "device"),
    [
        (None, "1", "1"), ("6,7", "1", "7"), ("3", "0", "3"), (" 6 , 7 ", "0", "6"),
        ("GPU-aaaa,GPU-bbbb", "1", "GPU-bbbb"), ("MIG-1/2/3,0", "0", "MIG-1/2/3"),
        ("2,-1,3", "0", "2"),
    ],
)  # fmt: skip
def test_devices_are_those_of_the_server(visible: str | None, instance: str, device: str) -> None:
    assert visible_device(visible, instance) == device


@pytest.mark.parametrize(
    ("visible", "instance"), [("6", "1"), ("", "0"), ("-1", "0"), ("2,-1,3", "2")]
)
def test_devices_that_the_server_does_not_see(visible: str, instance: str) -> None:
    with pytest.raises(BackendError, match=f"no GPU {instance} among CUDA_VISIBLE_DEVICES"):
        visible_device(visible, instance)


def test_an_instance_gets_its_device(
    module: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    monkeypatch.setattr(module.Batcher, "from_bundle", lambda *_: None)
    given = {**arguments(repository), "model_instance_kind": "GPU", "model_instance_device_id": "1"}
    with pytest.raises(AttributeError):  # there is no batcher behind it
        module.TGateModel().initialize(given)
    assert module.os.environ["CUDA_VISIBLE_DEVICES"] == "7"
