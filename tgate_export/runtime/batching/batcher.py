"""`Batcher`: requests in, futures out; one thread that forms batches and runs them."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import Backend
from tgate_export.runtime.batching.policy import CallCosts, choose, choose_fullest, due
from tgate_export.runtime.batching.request_state import (
    BatchedOutput,
    BatchingOptions,
    ClosedError,
    QueueFullError,
    RequestState,
    StageTime,
    StepCallback,
    StepProgress,
    images_of,
    partition,
)
from tgate_export.runtime.batching.stats import BatcherStats, Recorder
from tgate_export.runtime.image_state import ImageState, Stage
from tgate_export.runtime.model_runner import ModelRunner
from tgate_export.runtime.plan import BatchShape
from tgate_export.runtime.request import Request, make_request
from tgate_export.runtime.run_plan import RunPlans
from tgate_export.runtime.text_encoder import REMEMBERED, TextEncoder

_WATCH_SECONDS = 0.1  # how soon a request that is late is answered, and a call stopped for it
_STOP_SECONDS = 5.0  # that `close` waits for a call which backends cannot stop


class Batcher:
    """Generates what many callers ask for at once, each step of all of them in shared engine calls.

    Requests may differ in everything but the bundle: steps, gate, sampler, guidance, seed, size.
    Before every call the images in flight are sorted by how long they can wait (`policy`), and one
    phase of them runs as a batch. Each image's latents are those of a run of its own, to the
    rounding of batched kernels.

    Any thread may submit. A single thread of the batcher's own runs engines; callbacks run there,
    so they should be short. Another one looks after the requests in a call that takes long: those
    that are late are answered, and a call that nobody waits for any more is stopped.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, options: BatchingOptions | None = None
    ) -> None:
        """Load engines, run each once, and start; see `from_bundle`."""
        options = options or BatchingOptions()
        self.bundle = bundle
        self.backend = backend
        batch = bundle.manifest.batch
        most = min(options.max_batch or batch.max, batch.max)
        self.max_batch = backend.batch_size(max(most, batch.min))
        self.max_in_flight = options.max_in_flight or 4 * self.max_batch
        self.max_pending = options.max_pending
        self._target = options.call_target
        self._whole_batches = options.whole_batches
        self._run_plans = RunPlans(bundle)
        self._texts = TextEncoder(bundle, remember=REMEMBERED)
        self._runner = ModelRunner(
            backend, bundle, self._texts, whole_batches=options.whole_batches
        )
        self._costs = CallCosts()
        self._pace: dict[Stage, float] = {}  # seconds of a call of the largest batch
        self._recorder = Recorder()
        self._changed = threading.Condition()
        self._waiting: list[RequestState] = []
        self._begun: list[RequestState] = []
        self._flight: list[ImageState] = []  # of `_begun`; the thread's own
        self._owners: dict[ImageState, RequestState] = {}
        self._pending = 0
        self._closing = False
        self._process = os.getpid()
        self._calling = threading.Lock()
        self._running: list[RequestState] | None = (
            None  # whose images are in the engine call that runs
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="tgate-batcher", daemon=True)
        self._thread.start()
        self._watcher = threading.Thread(
            target=self._watch, name="tgate-batcher-watch", daemon=True
        )
        self._watcher.start()
        try:
            self._warm_up()
        except BaseException:
            self.close(drain=False)
            raise

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        backend: str = "auto",
        options: BatchingOptions | None = None,
        *,
        check_hashes: bool = True,
    ) -> Batcher:
        """Open a bundle and serve it; see `TGatePipeline.from_bundle`.

        Raises:
            BundleError: the bundle is missing, damaged, or newer than this package.
            BackendError: the backend cannot be used here.
        """
        bundle = open_bundle(path, check_hashes=check_hashes, cache_hashes=True)
        return cls(bundle, select(backend, bundle), options)

    @property
    def manifest(self) -> Manifest:
        """What the bundle holds."""
        return self.bundle.manifest

    @property
    def alive(self) -> bool:
        """Whether the thread runs that all requests depend on."""
        return self._thread.is_alive()

    def request(self, prompt: Any = None, **arguments: Any) -> Request:
        """Return a request with the arguments of `TGatePipeline.__call__`.

        Raises:
            InvalidRequestError: an argument out of range; the message names it.
        """
        return make_request(self.manifest, prompt, **arguments)

    def submit(
        self,
        request: Request,
        *,
        deadline: float | None = None,
        on_step: StepCallback | None = None,
    ) -> Future[BatchedOutput]:
        """Take on a request, or refuse it at once.

        Cancelling the future frees the request's place before the next engine call.
        `asyncio.wrap_future` makes it awaitable.

        Args:
            request: made by `request`.
            deadline: seconds from now after which the result is of no use.
            on_step: called after every evaluation of every image, in the batcher's thread; an
                exception fails the request.

        Raises:
            InvalidRequestError: the bundle cannot do it, or it can never fit.
            TGateError: the sampler is not in the bundle, and compiling it failed.
            QueueFullError: `max_pending` images are pending.
            ClosedError: the batcher is closing, or this is a fork of its process.

        The future's own errors are `DeadlineError`, `ClosedError`, and those of backends.
        """
        if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
            raise InvalidRequestError(f"deadline must be above 0 seconds, got {deadline}")
        if request.images > self.max_pending:
            raise InvalidRequestError(
                f"{request.images} images are more than the {self.max_pending} that can be pending "
                "here: ask for fewer at a time"
            )
        now = monotonic()
        if self._forked:  # before the lock, which may have been held when it forked
            raise ClosedError(
                "this process was forked from the batcher's, whose threads it does not have: make "
                "a batcher in this process"
            )
        with self._changed:
            self._check_room(request.images)  # before work is done for it
        first, *to_come = self._run_plans.of_passes(request)
        images = images_of(self.manifest, first)
        warnings: dict[str, None] = {}  # each once
        for image in images:
            for prompt in self._texts.inputs(image).values():
                warnings |= dict.fromkeys(prompt.warnings)
        limit = None if deadline is None else now + deadline
        moment = due(now, self._needed(images[0].left), limit)
        for image in images:
            image.due = moment
        state = RequestState(
            request, Future(), images, now, limit, on_step, tuple(warnings), to_come
        )
        with self._changed:
            self._check_room(request.images)
            self._pending += request.images
            self._waiting.append(state)
            self._changed.notify()
        return state.future

    def stats(self) -> BatcherStats:
        """Return what has been done so far, and what is pending."""
        with self._changed:
            waiting = sum(len(state.waiting) for state in self._waiting)
            return self._recorder.stats(waiting, self._pending - waiting)

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, and wait until those that were taken are done.

        Args:
            drain: finish them; otherwise they fail with `ClosedError` after the current call.
            timeout: seconds to wait; what is not done then fails with `ClosedError`.
        """
        if self._forked:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        # A callback may call this, in either thread.
        here = threading.current_thread()
        if drain and self._thread is not here:
            self._thread.join(timeout)
        self._fail_all()
        if self._thread is not here:
            self._thread.join(_STOP_SECONDS)
        if self._ended.is_set() and self._watcher is not here:
            self._watcher.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def _forked(self) -> bool:
        return os.getpid() != self._process

    def _serve(self) -> None:
        try:
            while self._await_flight():
                try:
                    self._call()
                    self._refuse_late()
                except BaseException as error:  # memory that ran out between calls, say
                    for state in {self._owners[image]: None for image in self._flight}:
                        self._settle(state, error)
        finally:  # nobody is to wait for a thread that is gone
            self._closing = True
            self._fail_all()
            self._ended.set()

    def _watch(self) -> None:
        """Answer who is late while a call runs, and stop a call that nobody waits for."""
        while not self._ended.wait(_WATCH_SECONDS):
            self._refuse_late()
            with self._calling:
                if self._running and all(state.future.done() for state in self._running):
                    self.backend.stop()

    def _fail_all(self) -> None:
        with self._changed:
            states = [*self._waiting, *self._begun]
        for state in states:
            self._settle(state, ClosedError("the server closed before this request was done"))

    def _await_flight(self) -> bool:
        """Wait until something is in flight; False when the batcher is closed and all is done."""
        with self._changed:
            while True:
                self._drop_finished()
                self._begin_waiting()
                if self._flight:
                    return True
                if self._closing:
                    return False
                self._changed.wait()

    def _drop_finished(self) -> None:
        """Forget what was cancelled, failed or is done, so that its place is free."""
        self._waiting, gone = partition(self._waiting)
        self._begun, ended = partition(self._begun)
        for state in (*gone, *ended):
            self._release(state)
            self._recorder.count(state.outcome)
        for state in (*gone, *ended):
            for image in state.images:
                image.abandoned, image.state = True, {}
                self._owners.pop(image, None)
        if gone or ended:
            self._flight = [image for image in self._flight if image in self._owners]

    def _release(self, state: RequestState) -> None:
        """Stop counting a request's images as pending."""
        with self._changed:
            if not state.released:
                state.released = True
                self._pending -= state.request.images

    def _settle(self, state: RequestState, outcome: BatchedOutput | BaseException) -> None:
        """Give a request its outcome; who gets it may submit the next one at once."""
        self._release(state)
        state.settle(outcome)

    def _refuse_late(self) -> None:
        now = monotonic()
        with self._changed:
            states = [*self._waiting, *self._begun]
        for state in states:
            if error := state.late(now):
                self._settle(state, error)

    def _begin_waiting(self) -> None:
        """Let images begin while there is room, those that can wait least before the others."""
        self._waiting.sort(key=lambda state: self._start_by(state.waiting[0]))
        while self._waiting and len(self._flight) < self.max_in_flight:
            state = self._waiting[0]
            image = state.waiting.popleft()
            self._owners[image] = state
            self._flight.append(image)
            if not state.waiting:
                self._begun.append(self._waiting.pop(0))

    def _call(self) -> None:
        stage, members = self._choose()
        started = monotonic()
        states = list(dict.fromkeys(self._owners[member] for member in members))
        for state in states:
            state.began = state.began or started
        try:
            engine_seconds, progress = self._run(states, stage, members)
        except BaseException as error:  # whatever a backend raises is the callers' to see
            for state in states:
                self._settle(state, error)
            return
        seconds = monotonic() - started
        self._costs.record(stage, len(members), seconds)
        self._pace[stage] = self._costs.expected(stage, self.max_batch)
        self._recorder.call(stage, len(members), engine_seconds, seconds)
        for member in members:
            self._tell(stage, member, len(members), seconds, progress.get(member))
        self._flight = [image for image in self._flight if image.stage != "done"]
        for state in states:
            if all(image.stage == "done" for image in state.images):
                self._end_pass(state)

    def _choose(self) -> tuple[Stage, list[ImageState]]:
        """Choose the next call."""

        def largest(stage: Stage) -> int:
            return self._costs.largest(stage, self.max_batch, self._target)

        if self._whole_batches:
            return choose_fullest(self._flight, largest)
        return choose(self._flight, largest, self._start_by)

    def _run(
        self, states: list[RequestState], stage: Stage, members: list[ImageState]
    ) -> tuple[float, dict[ImageState, StepProgress]]:
        """Run a call; return the seconds of engines, and what callers are told of a step."""
        with self._runner.turn():
            with self._calling:  # from now on, what runs on the backend is this call
                self._running = states
            try:
                seconds = self._runner.run(self._shape(members[0]), stage, members)
                watched = [
                    member
                    for member in members
                    if stage not in ("encode", "decode") and self._owners[member].on_step
                ]
                return seconds, {
                    member: StepProgress.of(
                        member,
                        len(members),
                        self._runner.latents(member),
                        self._runner.noise_pred(member),
                    )
                    for member in watched
                }
            finally:
                with self._calling:
                    self._running = None
                    self.backend.resume()

    def _shape(self, image: ImageState) -> BatchShape:
        """Return the shape of calls for an image of its size, whatever it needs."""
        manifest = self.manifest
        with_image = "vae_encoder" in manifest.graphs
        return BatchShape(self.max_batch, *image.size, manifest.phases, image=with_image)

    def _end_pass(self, state: RequestState) -> None:
        """Begin a request's next pass, or give it its outcome."""
        ended = state.images
        try:
            goes_on = not state.future.done() and state.go_on(self.manifest)
        except BaseException as error:  # memory for larger pictures, say: it is this caller's alone
            self._settle(state, error)
            return
        if not goes_on:
            self._finish(state)
            return
        for image in ended:
            self._owners.pop(image, None)
        with self._changed:
            self._begun.remove(state)
            self._waiting.append(state)

    def _finish(self, state: RequestState) -> None:
        now = monotonic()
        outcome: BatchedOutput | BaseException
        try:
            outcome = state.late(now) or state.output(self.manifest, now)
        except BaseException as error:  # memory for the result, say: it is this caller's alone
            outcome = error
        self._settle(state, outcome)

    def _tell(
        self,
        stage: Stage,
        member: ImageState,
        batch: int,
        seconds: float,
        progress: StepProgress | None,
    ) -> None:
        """Note a call in a member's request, and tell its caller of a step."""
        state = self._owners[member]
        time = state.stages.setdefault(stage, StageTime())
        time.calls += 1
        time.seconds += seconds
        time.images += batch
        if progress is not None and state.on_step is not None and not state.future.done():
            try:
                state.on_step(progress)
            except BaseException as error:  # whatever it is, it is this caller's alone
                self._settle(state, error)

    def _check_room(self, images: int) -> None:
        if self._closing:
            self._recorder.count("refused")
            raise ClosedError("the server is shutting down: send the request to another one")
        if self._pending + images > self.max_pending:
            self._recorder.count("refused")
            raise QueueFullError.after(
                self.stats().seconds_to_wait,
                f"{self._pending} of {self.max_pending} images are pending, no room for {images} "
                "more",
            )

    def _start_by(self, image: ImageState) -> float:
        """Return when an image has to go on, at the latest, to be done when it is due."""
        return image.due - self._needed(image.left)

    def _needed(self, evaluations: Counter[str]) -> float:
        """Return the seconds that evaluations should take in the largest batches."""
        return sum(number * self._pace.get(phase, 0.0) for phase, number in evaluations.items())

    def _warm_up(self) -> None:
        """Run every stage, and read all that is in the bundle, so that no request waits for it."""
        for name in self.manifest.samplers:
            self._run_plans.table(name)
        steps = min(2, self.manifest.samplers[self.manifest.defaults.scheduler].max_steps)
        size = self.manifest.size
        black = np.zeros((size.height.opt, size.width.opt, 3), np.uint8)
        request = self.request(
            "" if self.manifest.takes_prompt else None,
            num_inference_steps=steps, gate_step=1, warm_up=0, seed=0,
            **dict.fromkeys(self.manifest.pictures, black),
        )  # fmt: skip
        self.submit(request).result()
        self._recorder = Recorder()
