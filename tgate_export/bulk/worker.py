"""From a line to its image's file: a batcher, and threads that make files of what it made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tgate_export.bulk.line import Line
from tgate_export.bulk.output_folder import WriteError, write_file
from tgate_export.bulk.settings import BulkSettings, image_file
from tgate_export.bundle.integrity import Bundle
from tgate_export.common.errors import InvalidRequestError, TGateError, first_line
from tgate_export.runtime.backends.base import Backend
from tgate_export.runtime.batching import BatchedOutput, Batcher, BatchingOptions
from tgate_export.runtime.cpus import processors
from tgate_export.runtime.picture_file import encode_picture, encode_video, made_with

_THREADS = 4  # that encode; a large PNG takes as long as a few steps on a GPU
_NO_BOUND = 2**20  # who starts lines bounds them


@dataclass(frozen=True)
class Result:
    """What became of a line.

    Attributes:
        entry: what is to be written down of it.
        made: whether its image is there; otherwise the entry says why not.
        stop: why nothing more can be made, as on a full disk; "" where nothing is wrong.
    """

    entry: Mapping[str, Any]
    made: bool
    stop: str = ""


class Worker:
    """Generates lines, many at a time.

    Attributes:
        window: how many lines keep the batcher busy: those in flight, and the next ones.
    """

    def __init__(self, settings: BulkSettings, bundle: Bundle, backend: Backend) -> None:
        """Load engines.

        Raises:
            BackendError: one cannot be loaded.
        """
        self._settings = settings
        options = BatchingOptions(
            max_batch=settings.batch(bundle.manifest), max_pending=_NO_BOUND, whole_batches=True
        )
        self._batcher = Batcher(bundle, backend, options)
        self._encoders = ThreadPoolExecutor(min(_THREADS, processors()), "tgate-encoder")
        self._closed = False
        self.window = self._batcher.max_in_flight + 2 * self._batcher.max_batch

    def start(self, line: Line, deliver: Callable[[Result], None]) -> None:
        """Take on a line.

        Args:
            line: of a checked file.
            deliver: told what became of it, once, in whatever thread.

        Raises:
            ClosedError: the batcher is gone.
        """
        try:
            future = self._batcher.submit(self._batcher.request(**line.arguments))
        except InvalidRequestError as error:  # a picture that was checked by its size alone
            deliver(_failed(line, error))
        else:
            future.add_done_callback(lambda done: self._encode_later(line, done, deliver))

    def close(self) -> None:
        """Drop what is not done; what is being written is written."""
        self._closed = True
        self._batcher.close(drain=False)
        self._encoders.shutdown(wait=True, cancel_futures=True)

    def _encode_later(
        self, line: Line, done: Future[BatchedOutput], deliver: Callable[[Result], None]
    ) -> None:
        if not self._closed:  # in the batcher's thread, whose engines are not to wait
            self._encoders.submit(self._deliver, line, done, deliver)

    def _deliver(
        self, line: Line, done: Future[BatchedOutput], deliver: Callable[[Result], None]
    ) -> None:
        try:
            result = self._written(line, done.result())
        except WriteError as error:
            result = Result({"line": line.number}, made=False, stop=error.message)
        except Exception as error:  # this line's alone
            result = _failed(line, error)
        deliver(result)

    def _written(self, line: Line, output: BatchedOutput) -> Result:
        """Write a line's image, and return what is written down of it."""
        settings, request = self._settings, output.request
        manifest = self._batcher.manifest
        encode = encode_video if manifest.latents.video else encode_picture
        content = encode(output.images[0], settings.kind, manifest, request, 0)
        name = image_file(line.number, settings.kind)
        write_file(settings.out, name, content)
        made = made_with(manifest, request, 0)
        how = ("seed", "prompt", "negative_prompt", "width", "height", "hires", "parameters")
        entry = {
            "line": line.number,
            "id": line.id,
            "file": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            **{name: made[name] for name in how if name in made},
            "seconds": round(output.total - output.waited, 3),
        }
        if output.warnings:
            entry["warnings"] = list(output.warnings)
        return Result(entry, made=True)


def _failed(line: Line, error: Exception) -> Result:
    text = (
        str(error)
        if isinstance(error, TGateError)
        else f"{type(error).__name__}: {first_line(error)}"
    )
    return Result({"line": line.number, "id": line.id, "error": text}, made=False)
