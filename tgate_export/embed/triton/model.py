"""The Triton model: tensors in, the batcher, responses out. Runs inside `tritonserver` alone."""

from __future__ import annotations

import base64
import json
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tgate_export.common.errors import InvalidRequestError, TGateError, first_line, ordinary
from tgate_export.embed.triton.devices import visible_device
from tgate_export.embed.triton.encoders import Encoders
from tgate_export.embed.triton.interface import inputs
from tgate_export.embed.triton.metrics import Metrics
from tgate_export.embed.triton.parsing import Call, check_fields, parse
from tgate_export.embed.triton.repository import ServingOptions, bundle_of
from tgate_export.embed.triton.watchdog import Watchdog, server_above
from tgate_export.runtime.batching import (
    BatchedOutput,
    Batcher,
    BatchingOptions,
    ClosedError,
    DeadlineError,
    QueueFullError,
    StepProgress,
)
from tgate_export.runtime.output import to_pil
from tgate_export.runtime.picture_file import encode_picture
from tgate_export.runtime.serving import message_of

_POLL_SECONDS = 0.1  # how soon a client that went away is noticed, and metrics are renewed
_PROGRESS_BYTES = 64 * 2**20  # that may wait to be sent; what is more is left out
_MESSAGE_BYTES = 512  # of progress, beside a preview's latents
_ID_CHARACTERS = 64  # of a caller's, that the log shows
_UNSENDABLE = (
    "the response could not be sent: ask for fewer images or format base64, or give the server "
    "more shared memory; its log has the reason"
)


@dataclass(eq=False)
class _Exchange:
    """A request that is being served."""

    id: str
    call: Call
    sender: Any
    future: Future[BatchedOutput] | None = None

    @property
    def images(self) -> int:
        return self.call.request.images


class TGateModel:
    """What Triton's Python backend drives; see its documentation for the methods.

    The batcher's threads only queue what is to be sent. One thread of this class sends responses,
    looks for clients that went away, and renews metrics; others make pictures into files. What
    waits to be sent is bounded: images that are not answered by twice `max_pending`, and progress
    by its size.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside `model.py`, and run every engine once."""
        config = json.loads(args["model_config"])
        parameters = {
            name: entry["string_value"] for name, entry in config.get("parameters", {}).items()
        }
        if args["model_instance_kind"] == "GPU":
            # Every instance is a process of its own.
            os.environ["CUDA_VISIBLE_DEVICES"] = visible_device(
                os.environ.get("CUDA_VISIBLE_DEVICES"), args["model_instance_device_id"]
            )
        bundle = bundle_of(Path(args["model_repository"]), args["model_version"])
        self._batcher = Batcher.from_bundle(
            bundle, parameters.get("backend", "auto"), _options(parameters)
        )
        self._max_images = int(parameters.get("max_images", ServingOptions.max_images))
        self._names = [port.name for port in inputs(self._batcher.manifest)]
        self._exchanges: set[_Exchange] = set()
        self._closing = False
        self._outbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._progress_lock = threading.Lock()
        self._progress_bytes = 0  # in the outbox
        self._encoders = Encoders()
        self._metrics = Metrics(pb_utils, args["model_name"], args["model_instance_name"])
        self._thread = threading.Thread(target=self._deliver, name="tgate-responses", daemon=True)
        self._thread.start()
        server = server_above()
        self._watchdog = None if server is None else Watchdog(server)
        if server == 1:
            _log(event="warning", text="tritonserver is process 1: start it under an init, such as "
                 "docker run --init, for it to end at once when this process dies")  # fmt: skip
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
            except BaseException as error:  # one request must not fail the others
                _attempt(partial(_send_error, sender, error))

    def finalize(self) -> None:
        """Finish what was taken, as the server does when it is told to stop."""
        self._closing = True
        self._batcher.close()
        ended = threading.Event()
        self._outbox.put(ended.set)
        ended.wait()
        self._encoders.close()
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
        # What `generate` knows no input for, it hands over as parameters.
        parameters = getattr(request, "parameters", None)
        fields = json.loads((parameters and parameters()) or "{}")
        id_ = request.request_id() or str(fields.get("id", ""))[:_ID_CHARACTERS]
        check_fields(self._names, fields.keys() - {"id"})
        call = parse(self._batcher.manifest, found, self._max_images)
        exchange = _Exchange(id_, call, sender)
        unanswered = sum(other.images for other in list(self._exchanges))
        if unanswered + exchange.images > 2 * self._batcher.max_pending:
            raise QueueFullError.after(
                self._batcher.stats().seconds_to_wait,
                f"{unanswered} images are pending or wait to be sent, no room for "
                f"{exchange.images} more",
            )
        on_step = partial(self._tell, exchange) if call.progress or call.preview else None
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

    def _tell(self, exchange: _Exchange, progress: StepProgress) -> None:
        """Queue a step's progress, unless too much waits already: then its client misses a step."""
        latents = progress.latents() if exchange.call.preview else None
        size = _MESSAGE_BYTES + (0 if latents is None else latents.nbytes)
        with self._progress_lock:
            if self._progress_bytes + size > _PROGRESS_BYTES:
                return
            self._progress_bytes += size
        numbers = {
            "image": progress.image, "step": progress.step, "evaluations": progress.evaluations,
        }  # fmt: skip
        phase = progress.phase

        def send() -> None:  # holds no more than it sends
            with self._progress_lock:
                self._progress_bytes -= size
            _send_progress(exchange.sender, numbers, phase, latents)

        self._outbox.put(send)

    def _end(self, exchange: _Exchange, future: Future[BatchedOutput]) -> None:
        try:
            output = future.result()
        except (CancelledError, Exception) as error:
            self._fail(exchange, error)
            return
        if exchange.call.format in ("png", "base64"):
            files: list[bytes] = []
            self._encoders.add(lambda: self._encode(exchange, output, files))
        else:
            self._finish(exchange, output, ())

    def _encode(self, exchange: _Exchange, output: BatchedOutput, files: list[bytes]) -> bool:
        """Make a request's next picture a file; return whether there are more."""
        try:
            (picture,) = to_pil(np.asarray(output.images[len(files)])[None])
            file = encode_picture(
                picture, "PNG", self._batcher.manifest, output.request, len(files)
            )
            files.append(base64.b64encode(file) if exchange.call.format == "base64" else file)
        except BaseException as error:
            self._outbox.put(partial(self._fail, exchange, error))
            return False
        if len(files) < len(output.images):
            return True
        self._outbox.put(lambda: self._finish(exchange, output, files))
        return False

    def _fail(self, exchange: _Exchange, error: BaseException) -> None:
        self._exchanges.discard(exchange)
        _log(event="request", id=exchange.id, error=type(error).__name__)
        _send_error(exchange.sender, error)

    def _finish(self, exchange: _Exchange, output: BatchedOutput, files: Sequence[bytes]) -> None:
        try:
            response = pb_utils.InferenceResponse(_result(exchange.call, output, files))
            _send(exchange.sender, response, final=True)
        except BaseException as error:
            # Triton's own words name its shared memory, which is nobody else's to know.
            _log(event="response failed", id=exchange.id, error=f"{type(error).__name__}: {error}")
            self._fail(exchange, TGateError(_UNSENDABLE))
            return
        self._exchanges.discard(exchange)
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
    except BaseException as error:
        _log(event="response failed", error=f"{type(error).__name__}: {error}")


def _options(parameters: dict[str, str]) -> BatchingOptions:
    kinds = {"max_batch": int, "max_in_flight": int, "max_pending": int, "call_target": float}
    values = {name: kind(parameters[name]) for name, kind in kinds.items() if name in parameters}
    return BatchingOptions(**values)


def _result(call: Call, output: BatchedOutput, files: Sequence[bytes]) -> list[Any]:
    images = np.asarray(output.images)
    if call.format == "latents":
        content = pb_utils.Tensor("latents", images)
    elif call.format == "raw":
        content = pb_utils.Tensor("images", (images * 255).round().astype(np.uint8))
    else:
        content = pb_utils.Tensor("png", np.array(files, dtype=np.object_))
    return [
        content,
        pb_utils.Tensor("seed", np.array([output.request.seed], np.uint64)),
        _text_tensor("timings", json.dumps(output.timings() | {"warnings": output.warnings})),
    ]


def _text_tensor(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode()], dtype=np.object_))


def _send_progress(
    sender: Any, numbers: Mapping[str, int], phase: str, latents: np.ndarray | None
) -> None:
    tensors = [pb_utils.Tensor(name, np.array([n], np.int32)) for name, n in numbers.items()]
    tensors.append(_text_tensor("phase", phase))
    if latents is not None:
        tensors.append(pb_utils.Tensor("latents", latents[None]))
    _send(sender, pb_utils.InferenceResponse(tensors), final=False)


def _send_error(sender: Any, error: BaseException) -> None:
    codes = (
        ((QueueFullError, ClosedError), pb_utils.TritonError.UNAVAILABLE),
        ((InvalidRequestError,), pb_utils.TritonError.INVALID_ARG),
        ((CancelledError, DeadlineError), pb_utils.TritonError.CANCELLED),
    )
    code = next((code for kinds, code in codes if isinstance(error, kinds)), None)
    if code is None:
        code = pb_utils.TritonError.INTERNAL
    error = ordinary(error)
    if not isinstance(error, TGateError | CancelledError):
        _log(event="error", error=f"{type(error).__name__}: {first_line(error)}")
    try:
        failure = pb_utils.TritonError(message_of(error), code)
        _send(sender, pb_utils.InferenceResponse(output_tensors=[], error=failure), final=True)
    except BaseException:  # an end without a word, which takes no memory
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        raise


def _send(sender: Any, response: Any, *, final: bool) -> None:
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
    sender.send(response, flags=flags)


def _log(**fields: Any) -> None:
    """Write a line of JSON to the server's log; prompts are never in it."""
    pb_utils.Logger.log_info(json.dumps(fields))
