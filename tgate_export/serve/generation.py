"""A request's way through a model: submitted, followed step by step, made into files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request as HttpRequest

from tgate_export.runtime.batching import BatchedOutput, Batcher, StepProgress
from tgate_export.runtime.output import to_pil
from tgate_export.runtime.picture_file import encode_picture
from tgate_export.runtime.sampler_choice import require_table
from tgate_export.serve.errors import HttpError
from tgate_export.serve.pool import Model, ModelPool

T = TypeVar("T")
StepCallback = Callable[[StepProgress], None]
_ENCODERS = 2  # threads that make pictures into files
_encoders = ThreadPoolExecutor(_ENCODERS, "tgate-encoder")


@dataclass(frozen=True)
class Wanted:
    """What a request asks for, read from its body.

    Attributes:
        model: that is to make it.
        arguments: of `Batcher.request`.
        kind: of the files, as Pillow names it.
        quality: of lossy files, 0 to 100; None for the usual one.
        deadline: seconds from now, if there is one.
    """

    model: Model
    arguments: Mapping[str, Any]
    kind: str = "PNG"
    quality: int | None = None
    deadline: float | None = None


@asynccontextmanager
async def submitted(
    pool: ModelPool, wanted: Wanted, on_step: StepCallback | None = None
) -> AsyncIterator[asyncio.Future[BatchedOutput]]:
    """Submit a request; what is not done at the end of the block is dropped.

    Args:
        pool: that lends the model.
        wanted: what to make.
        on_step: called in the batcher's thread; see `Batcher.submit`.

    Raises:
        InvalidRequestError: the bundle cannot do it.
        QueueFullError: too much is pending.
        HttpError: 503 when the model cannot be loaded now.
    """
    async with pool.lend(wanted.model) as batcher:
        # In a thread: texts are tokenized and pictures decoded there.
        work = asyncio.ensure_future(asyncio.to_thread(_submit, batcher, wanted, on_step))
        try:
            future = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_cancel)
            raise
        try:
            yield asyncio.wrap_future(future)
        finally:
            future.cancel()


def _cancel(work: asyncio.Future[Future[BatchedOutput]]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().cancel()


def _submit(
    batcher: Batcher, wanted: Wanted, on_step: StepCallback | None
) -> Future[BatchedOutput]:
    request = batcher.request(output_type="np", **wanted.arguments)
    require_table(batcher.manifest, request.scheduler, starts=request.hires is not None)
    return batcher.submit(request, deadline=wanted.deadline, on_step=on_step)


def note(request: HttpRequest, wanted: Wanted, output: BatchedOutput) -> None:
    """Say in the line that is logged of a request what was made; prompts are nobody's."""
    made = output.request
    request.scope["tgate"] = {
        "model": wanted.model.name, "images": made.images, "steps": made.num_inference_steps,
        "gate_step": made.gate_step, "waited_s": round(output.waited, 4),
    }  # fmt: skip


async def files(wanted: Wanted, output: BatchedOutput) -> list[bytes]:
    """Make a request's pictures into files, one at a time, so that others get their turn."""
    return [
        await asyncio.get_running_loop().run_in_executor(_encoders, _file, wanted, output, index)
        for index in range(len(output.images))
    ]


def _file(wanted: Wanted, output: BatchedOutput, index: int) -> bytes:
    (image,) = to_pil(np.asarray(output.images[index])[None])
    manifest = wanted.model.manifest
    return encode_picture(
        image, wanted.kind, manifest, output.request, index, quality=wanted.quality
    )


async def in_encoder(work: Callable[..., T], *arguments: Any) -> T:
    """Run something that takes a moment beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_encoders, work, *arguments)


async def unless_gone(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """Wait for work, and end it when the client goes away; its body has been read.

    Raises:
        HttpError: the client is gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HttpError(499, "the client went away", code="gone")
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Step:
    """A step that an image took.

    Attributes:
        image: index in its request.
        step: index of the evaluation that ended.
        evaluations: how many there are.
        phase: the graph that ran.
        batch: images that shared the call.
        latents: what they would end as [C, h, w] f32 where that is to be shown; None elsewhere.
    """

    image: int
    step: int
    evaluations: int
    phase: str
    batch: int
    latents: np.ndarray | None

    def numbers(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "image": self.image, "step": self.step, "evaluations": self.evaluations,
            "phase": self.phase, "batch": self.batch,
        }  # fmt: skip


class Steps:
    """Steps on their way from the batcher's thread to the event loop.

    Who reads too slowly misses some: no more than `_MOST` wait.
    """

    _MOST = 64

    def __init__(self, shown: Sequence[float] = ()) -> None:
        """Say which steps are to be shown.

        Args:
            shown: parts of a run, in rising order, after which latents are kept.
        """
        self._shown = shown
        self.finished: dict[int, np.ndarray] = {}  # latents [C, h, w] f32 by image
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Step | None] = asyncio.Queue()

    def tell(self, progress: StepProgress) -> None:
        """Take a step; in the batcher's thread."""
        before, now = (n / progress.evaluations for n in (progress.step, progress.step + 1))
        if progress.step + 1 == progress.evaluations:
            self.finished[progress.image] = progress.latents()
        show = any(before < part <= now for part in self._shown)
        step = Step(
            progress.image, progress.step, progress.evaluations, progress.phase, progress.batch,
            progress.denoised() if show else None,
        )  # fmt: skip
        self._loop.call_soon_threadsafe(self._put, step)

    def _put(self, step: Step) -> None:
        if self._queue.qsize() < self._MOST:
            self._queue.put_nowait(step)

    async def until(self, future: asyncio.Future[Any]) -> AsyncIterator[Step]:
        """Yield steps until a future is done."""
        future.add_done_callback(lambda _: self._queue.put_nowait(None))
        while (step := await self._queue.get()) is not None:
            yield step
