"""The Triton model: tensors in, the batcher, responses out. Runs inside `tritonserver` alone."""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tgate_export.embed.triton.interface import inputs
from tgate_export.embed.triton.metrics import Metrics
from tgate_export.embed.triton.parsing import Call, parse
from tgate_export.embed.triton.repository import bundle_of
from tgate_export.embed.triton.watchdog import Watchdog, server_above
from tgate_export.errors import InvalidRequestError
from tgate_export.runtime.batching import (
    BatchedOutput,
    Batcher,
    BatchingOptions,
    ClosedError,
    DeadlineError,
    QueueFullError,
    StepProgress,
)
from tgate_export.runtime.pipeline import to_pil

_POLL_SECONDS = 0.1  # how soon a client that went away is noticed, and metrics are renewed


@dataclass(eq=False)
class _Exchange:
    """A request that is being served."""

    id: str
    call: Call
    sender: Any
    future: Future[BatchedOutput] | None = None


class TGateModel:
    """What Triton's Python backend drives; see its documentation for the methods.

    The batcher's thread only queues what is to be sent. One thread of this class encodes and sends
    responses, looks for clients that went away, and renews metrics.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside `model.py`, and run every engine once."""
        config = json.loads(args["model_config"])
        parameters = {
            name: entry["string_value"] for name, entry in config.get("parameters", {}).items()
        }
        if args["model_instance_kind"] == "GPU":
            # Every instance is a process of its own.
            os.environ["CUDA_VISIBLE_DEVICES"] = args["model_instance_device_id"]
        bundle = bundle_of(Path(args["model_repository"]), args["model_version"])
        self._batcher = Batcher.from_bundle(
            bundle, parameters.get("backend", "auto"), _options(parameters)
        )
        self._names = [port.name for port in inputs(self._batcher.manifest)]
        self._exchanges: set[_Exchange] = set()
        self._closing = False
        self._outbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._metrics = Metrics(pb_utils, args["model_name"], args["model_instance_name"])
        self._thread = threading.Thread(target=self._deliver, name="tgate-responses", daemon=True)
        self._thread.start()
        server = server_above()
        self._watchdog = None if server is None else Watchdog(server)
        _log(
            event="ready",
            backend=self._batcher.backend.name,
            reason=self._batcher.backend.reason,
            max_batch=self._batcher.max_batch,
        )

    def execute(self, requests: list[Any]) -> None:
        """Take requests on, or refuse them; responses follow."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._accept(request, sender)
            except Exception as error:  # one request must not fail the others
                self._outbox.put(partial(_send_error, sender, error))

    def finalize(self) -> None:
        """Finish what was taken, as the server does when it is told to stop."""
        self._closing = True
        self._batcher.close()
        self._outbox.put(None)
        self._thread.join()
        self._metrics.close()
        if self._watchdog is not None:
            self._watchdog.release()
        _log(event="closed")

    def _accept(self, request: Any, sender: Any) -> None:
        found = {
            name: tensor.as_numpy()
            for name in self._names
            if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is not None
        }
        call = parse(self._batcher.manifest, found)
        exchange = _Exchange(request.request_id(), call, sender)
        on_step = None
        if call.progress or call.preview:

            def on_step(progress: StepProgress) -> None:
                self._outbox.put(lambda: _send_progress(exchange, progress))

        exchange.future = self._batcher.submit(
            call.request, deadline=call.deadline, on_step=on_step
        )
        self._exchanges.add(exchange)
        exchange.future.add_done_callback(
            lambda future: self._outbox.put(lambda: self._end(exchange, future))
        )

    def _deliver(self) -> None:
        polled = monotonic()
        while True:
            try:
                action = self._outbox.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                pass
            else:
                if action is None:
                    return
                _attempt(action)
            if monotonic() - polled >= _POLL_SECONDS:
                _attempt(self._poll)
                polled = monotonic()

    def _poll(self) -> None:
        if not self._batcher.alive and not self._closing:
            _log(event="the batcher stopped")
            os._exit(1)  # and the watchdog ends a server that could only refuse
        for exchange in list(self._exchanges):
            if exchange.future is not None and exchange.sender.is_cancelled():
                exchange.future.cancel()
        self._metrics.renew(self._batcher.stats())

    def _end(self, exchange: _Exchange, future: Future[BatchedOutput]) -> None:
        self._exchanges.discard(exchange)
        try:
            output = future.result()
        except (CancelledError, Exception) as error:
            _send_error(exchange.sender, error)
            _log(event="request", id=exchange.id, error=type(error).__name__)
            return
        tensors = _result(exchange.call, output)
        _send(exchange.sender, pb_utils.InferenceResponse(tensors), final=True)
        _log(
            event="request",
            id=exchange.id,
            images=output.request.images,
            steps=output.request.num_inference_steps,
            gate_step=output.request.gate_step,
            **output.timings(),
        )


def _attempt(action: Callable[[], None]) -> None:
    """Do something for one client, which must not end the thread that serves all of them."""
    try:
        action()
    except Exception as error:
        _log(event="response failed", error=f"{type(error).__name__}: {error}")


def _options(parameters: dict[str, str]) -> BatchingOptions:
    kinds = {"max_batch": int, "max_in_flight": int, "max_pending": int, "call_target": float}
    values = {name: kind(parameters[name]) for name, kind in kinds.items() if name in parameters}
    return BatchingOptions(**values)


def _result(call: Call, output: BatchedOutput) -> list[Any]:
    images = np.asarray(output.images)
    if call.format == "latents":
        drawn = pb_utils.Tensor("latents", images)
    elif call.format == "raw":
        drawn = pb_utils.Tensor("images", (images * 255).round().astype(np.uint8))
    else:
        files = [_png(picture) for picture in to_pil(images)]
        if call.format == "base64":
            files = [base64.b64encode(file) for file in files]
        drawn = pb_utils.Tensor("png", np.array(files, dtype=np.object_))
    return [
        drawn,
        pb_utils.Tensor("seed", np.array([output.request.seed], np.uint64)),
        _text_tensor("timings", json.dumps(output.timings() | {"warnings": output.warnings})),
    ]


def _png(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _text_tensor(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode()], dtype=np.object_))


def _send_progress(exchange: _Exchange, progress: StepProgress) -> None:
    numbers = {
        "image": progress.image, "step": progress.step, "evaluations": progress.evaluations,
    }  # fmt: skip
    tensors = [pb_utils.Tensor(name, np.array([n], np.int32)) for name, n in numbers.items()]
    tensors.append(_text_tensor("phase", progress.phase))
    if exchange.call.preview:
        tensors.append(pb_utils.Tensor("latents", progress.latents()[None]))
    _send(exchange.sender, pb_utils.InferenceResponse(tensors), final=False)


def _send_error(sender: Any, error: BaseException) -> None:
    codes = (
        ((QueueFullError, ClosedError), pb_utils.TritonError.UNAVAILABLE),
        ((InvalidRequestError,), pb_utils.TritonError.INVALID_ARG),
        ((CancelledError, DeadlineError), pb_utils.TritonError.CANCELLED),
    )
    code = next((code for kinds, code in codes if isinstance(error, kinds)), None)
    if code is None:
        code = pb_utils.TritonError.INTERNAL
    message = str(error) or type(error).__name__
    failure = pb_utils.TritonError(message, code)
    _send(sender, pb_utils.InferenceResponse(output_tensors=[], error=failure), final=True)


def _send(sender: Any, response: Any, *, final: bool) -> None:
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
    sender.send(response, flags=flags)


def _log(**fields: Any) -> None:
    """Write a line of JSON to the server's log; prompts are never in it."""
    pb_utils.Logger.log_info(json.dumps(fields))
