"""A client of a served bundle: gRPC, pictures as arrays, progress as it comes.

client = TGateClient("127.0.0.1:8001", "shapes")
result = client.generate("a red circle", steps=25, seed=0, on_progress=print)
Image.fromarray(result.images[0]).save("x.png")
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tgate_export.common.errors import TGateError
from tgate_export.common.install import pip_install
from tgate_export.embed.triton.interface import Format
from tgate_export.embed.triton.tls import Tls

_DTYPES = {"INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32, "UINT8": np.uint8}


class ServerError(TGateError):
    """The server refused a request, or could not finish it; the message is the server's."""


@dataclass(frozen=True)
class Progress:
    """One denoiser evaluation of one image of a request.

    Attributes:
        image: index of the image in the request.
        step: index of the evaluation that has ended.
        evaluations: how many there are.
        phase: the graph that ran: "full" or "gated", or one that reuses self-attention.
        latents: the current sample [C, h, w] f32, if a preview was asked for.
    """

    image: int
    step: int
    evaluations: int
    phase: str
    latents: np.ndarray | None


@dataclass(frozen=True)
class GeneratedImages:
    """The result of a request.

    Attributes:
        images: [B, H, W, 3] u8 ("raw"), a list of files ("png") or of their base64 text
            ("base64"), or latents [B, C, h, w] f32 ("latents").
        seed: that they were generated with.
        timings: the server's, in seconds; see `BatchedOutput.timings`.
        warnings: what of the prompts was left out, because it did not fit the text encoder.
    """

    images: Any
    seed: int
    timings: Mapping[str, Any]
    warnings: Sequence[str]


class Call:
    """A request on its way. Iterate over it for progress, then ask for the result."""

    def __init__(self, forget: Callable[[], None], cancel: Callable[[], None]) -> None:
        self._answers: queue.Queue[Any] = queue.Queue()
        self._forget = forget
        self._cancel = cancel
        self._result: GeneratedImages | None = None

    def __iter__(self) -> Iterator[Progress]:
        """Wait for each step; ends with the request."""
        while self._result is None:
            answer = self._next(None)
            if isinstance(answer, Progress):
                yield answer

    def result(self, timeout: float | None = None) -> GeneratedImages:
        """Wait for the result.

        Args:
            timeout: seconds without an answer after which the call is given up.

        Raises:
            ServerError: with the server's message.
            TimeoutError: nothing came in time.
        """
        while self._result is None:
            self._next(timeout)
        return self._result

    def cancel(self) -> None:
        """Tell the server that nobody waits any more, and frees the request's place."""
        self._cancel()

    def _next(self, timeout: float | None) -> Progress | None:
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"no answer from the server within {timeout} s") from None
        if isinstance(answer, Exception):
            self._answers.put(answer)  # for whoever asks again
            self._forget()
            raise ServerError(str(answer)) from None
        if isinstance(answer, GeneratedImages):
            self._result = answer
            self._forget()
            return None
        progress: Progress = answer
        return progress


class TGateClient:
    """A model of a server; any thread may use it, and any number of calls may be open."""

    def __init__(self, url: str, model: str, tls: Tls | None = None) -> None:
        """Say where the server is; nothing is sent.

        Args:
            url: `host:port` of its gRPC service.
            model: its name.
            tls: certificates; without them the connection is not encrypted.

        Raises:
            TGateError: the client library is not installed, or a certificate cannot be used.
        """
        try:
            import tritonclient.grpc as grpc
        except ImportError:
            raise TGateError(f"tritonclient is not installed: {pip_install('triton')}") from None
        self._grpc = grpc
        self._model = model
        self._url = url
        self._tls = {} if tls is None else tls.options()
        self._inputs: dict[str, str] | None = None  # types by name, once asked for

    def ready(self) -> bool:
        """Whether the server answers and the model is loaded."""
        with self._connect() as client:
            try:
                return bool(client.is_server_ready() and client.is_model_ready(self._model))
            except self._grpc.InferenceServerException:
                return False

    def generate(
        self,
        prompt: str | list[str] | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> GeneratedImages:
        """Generate, and wait for the result; see `start` for the options.

        Raises:
            ServerError: with the server's message.
            TimeoutError: the server was silent for `timeout` seconds.
        """
        call = self.start(prompt, progress=on_progress is not None, **options)
        if on_progress is not None:
            for progress in call:
                on_progress(progress)
        return call.result(timeout)

    def start(
        self,
        prompt: str | list[str] | None = None,
        *,
        negative_prompt: str | list[str] | None = None,
        latents: np.ndarray | None = None,
        embeddings: Mapping[str, np.ndarray] | None = None,
        deadline: float | None = None,
        format: Format = "raw",  # noqa: A002 - the server's name
        progress: bool = False,
        preview: bool = False,
        request_id: str = "",
        **parameters: Any,
    ) -> Call:
        """Send a request, and return at once.

        Args:
            prompt: one or more.
            negative_prompt: one for all prompts, or one each.
            latents: starting latents [B, C, h, w] of unit variance, instead of a seed.
            embeddings: instead of prompts, arrays by the names of the text encoder's outputs,
                such as `prompt_embeds` and `negative_prompt_embeds`.
            deadline: seconds after which the server should drop the request.
            format: "raw", "png", "base64" or "latents"; see `GeneratedImages`.
            progress: tell every step that can be told in time,
            preview: and send its latents.
            request_id: for the server's log.
            **parameters: `seed`, `num_images`, `width`, `height`, and the parameters that the
                model has, such as `steps`, `gate_step` and `guidance_scale`.

        Raises:
            TypeError: the model has no such parameter; it says which there are.
            ServerError: the server does not answer.
        """
        parameters = {name: value for name, value in parameters.items() if value is not None}
        types = self._types() if parameters else {}
        if unknown := sorted(parameters.keys() - types.keys()):
            raise TypeError(f"unknown option {unknown[0]!r}: there are {', '.join(types)}")
        tensors = [
            self._texts("format", format),
            *(self._texts(name, text) for name, text in
              (("prompt", prompt), ("negative_prompt", negative_prompt)) if text is not None),
            *(self._parameter(name, types[name], value) for name, value in parameters.items()),
        ]  # fmt: skip
        for name, array in ({"latents": latents} | dict(embeddings or {})).items():
            if array is not None:
                tensors.append(self._tensor(name, array))
        if deadline is not None:
            tensors.append(self._tensor("deadline", np.array([deadline], np.float32)))
        flags = (("progress", progress or preview), ("preview", preview))
        tensors += [self._tensor(name, np.array([True])) for name, given in flags if given]
        return self._send(tensors, format, request_id)

    def _connect(self) -> Any:
        return self._grpc.InferenceServerClient(self._url, **self._tls)

    def _send(self, tensors: list[Any], format_: Format, request_id: str) -> Call:
        # A stream of its own, so that it can be cancelled alone.
        client = self._connect()

        def end(cancel: bool) -> None:
            # The library joins the thread that calls back, so that one must not close it.
            threading.Thread(target=_close, args=(client, cancel), daemon=True).start()

        call = Call(lambda: end(False), lambda: end(True))

        def answer(result: Any, error: Exception | None) -> None:
            try:
                call._answers.put(error or _read(result, format_))
            except Exception as broken:  # an answer that cannot be read must not be waited for
                call._answers.put(broken)

        try:
            client.start_stream(answer)
            client.async_stream_infer(self._model, tensors, request_id=request_id)
        except self._grpc.InferenceServerException as error:
            client.close()  # and the thread that calls back, which may know why
            known = None if call._answers.empty() else call._answers.get()
            raise ServerError(str(known or error)) from None
        return call

    def _texts(self, name: str, value: str | list[str]) -> Any:
        texts = [value] if isinstance(value, str) else value
        return self._tensor(name, np.array([text.encode() for text in texts], dtype=np.object_))

    def _types(self) -> dict[str, str]:
        """Return the types of the model's inputs, asked for once."""
        if self._inputs is None:
            with self._connect() as client:
                try:
                    metadata = client.get_model_metadata(self._model)
                except self._grpc.InferenceServerException as error:
                    raise ServerError(str(error)) from None
            self._inputs = {entry.name: entry.datatype for entry in metadata.inputs}
        return self._inputs

    def _parameter(self, name: str, kind: str, value: Any) -> Any:
        if kind == "BYTES":
            return self._texts(name, value)
        array = np.asarray(value, _DTYPES[kind])
        return self._tensor(name, array.reshape(1) if array.ndim == 0 else array)

    def _tensor(self, name: str, array: np.ndarray) -> Any:
        from tritonclient.utils import np_to_triton_dtype

        tensor = self._grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        return tensor


def _close(client: Any, cancel: bool) -> None:
    client.stop_stream(cancel_requests=cancel)
    client.close()


def _read(result: Any, format_: Format) -> Progress | GeneratedImages:
    """Read one answer; the last one has the timings."""
    names = {output.name for output in result.get_response().outputs}
    if "timings" not in names:
        numbers = {name: int(result.as_numpy(name)[0]) for name in ("image", "step", "evaluations")}
        latents = result.as_numpy("latents")[0] if "latents" in names else None
        return Progress(**numbers, phase=result.as_numpy("phase")[0].decode(), latents=latents)
    images = result.as_numpy({"raw": "images", "latents": "latents"}.get(format_, "png"))
    if format_ in ("png", "base64"):
        images = images.tolist()
    timings = json.loads(result.as_numpy("timings")[0])
    warnings = timings.pop("warnings")
    return GeneratedImages(images, int(result.as_numpy("seed")[0]), timings, warnings)
