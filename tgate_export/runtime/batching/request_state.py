"""What is submitted and what comes back."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import TGateError, ordinary
from tgate_export.runtime.batching.stats import Outcome
from tgate_export.runtime.denoised import denoised
from tgate_export.runtime.image_state import ImageState, Stage
from tgate_export.runtime.output import as_asked
from tgate_export.runtime.request import Request
from tgate_export.runtime.run_plan import Pass


class QueueFullError(TGateError):
    """Too many images are waiting: try again later.

    Attributes:
        seconds: after which there should be room.
    """

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds

    @classmethod
    def after(cls, seconds: int, refused: str) -> QueueFullError:
        """Say what was refused, and when to try again."""
        return cls(f"{refused}: try again in about {seconds} s", seconds)


class DeadlineError(TGateError):
    """A request could not be done by its deadline, and was dropped."""


class ClosedError(TGateError):
    """The batcher is closing and takes no more requests, or was closed before this one was done."""


@dataclass(frozen=True)
class BatchingOptions:
    """How much is taken on at once.

    Attributes:
        max_batch: images in one engine call; the bundle's largest batch when None, and never more.
        max_in_flight: images that have begun and hold memory for their latents, conditions and
            caches; four batches when None. Of a request for more, some wait until others are done.
        max_pending: images accepted and not yet done, begun or waiting; more are refused.
        call_target: seconds that one engine call should not exceed. Batches are kept small enough
            for it, so that progress and new requests are never further away than that.
        whole_batches: for who waits for all images and not for one. Every call computes
            `max_batch` images, of which nobody reads those that are missing, so that no result
            depends on which images share a call; and images wait for one another, so that few are
            missing.
    """

    max_batch: int | None = None
    max_in_flight: int | None = None
    max_pending: int = 128
    call_target: float | None = None
    whole_batches: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_in_flight", "max_pending"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.call_target is not None and not self.call_target > 0:
            raise ValueError(f"call_target must be above 0 seconds, got {self.call_target}")


@dataclass(frozen=True)
class StepProgress:
    """What a callback learns after one image's denoiser evaluation.

    Attributes:
        image: index of the image in its request.
        step: index of the evaluation that has ended.
        evaluations: how many there are, of both passes where there are two.
        phase: the graph that ran.
        batch: images that shared the call.
        latents: returns the image's current sample [C, h, w] f32.
        denoised: returns what they would end with if the noise prediction stayed as it is
            [C, h, w] f32: what a preview shows.
    """

    image: int
    step: int
    evaluations: int
    phase: str
    batch: int
    latents: Callable[[], np.ndarray]
    denoised: Callable[[], np.ndarray]

    @classmethod
    def of(
        cls, member: ImageState, batch: int, latents: np.ndarray, noise_pred: np.ndarray
    ) -> StepProgress:
        """Describe the step that an image has just taken, to these latents, by this prediction."""
        plan, step = member.run_plan, member.step - 1
        return cls(
            member.index, member.earlier + step, member.evaluations, plan.step_plan.phases[step],
            batch, lambda: latents,
            lambda: denoised(plan.sampler, step, latents, noise_pred),
        )  # fmt: skip


StepCallback = Callable[[StepProgress], None]


@dataclass
class StageTime:
    """A request's share of one stage: calls that its images were in.

    Attributes:
        calls: how many, counted once for each image.
        seconds: that they took.
        images: that were in them, summed over calls.
    """

    calls: int = 0
    seconds: float = 0.0
    images: int = 0


@dataclass(frozen=True)
class BatchedOutput:
    """Result of a request.

    Attributes:
        images: as `PipelineOutput.images`.
        request: the call with defaults filled in, the seed among them.
        waited: seconds before the first engine call.
        total: seconds from submission to result.
        stages: time by stage; calls are shared with other requests.
        warnings: what of the prompts was left out, because it did not fit the text encoder.
    """

    images: list[Any] | np.ndarray
    request: Request
    waited: float
    total: float
    stages: dict[Stage, StageTime]
    warnings: tuple[str, ...]

    def timings(self) -> dict[str, Any]:
        """Return the times in a form for JSON."""
        return {
            "waited_s": self.waited,
            "total_s": self.total,
            "stages": {
                stage: {
                    "calls": time.calls,
                    "seconds": time.seconds,
                    "mean_batch": time.images / time.calls,
                }
                for stage, time in self.stages.items()
            },
        }


@dataclass(eq=False)
class RequestState:
    """A request in the batcher's hands.

    Attributes:
        images: of the pass that it is in.
        to_come: the passes after it.
        arrived: when it was submitted, by `time.monotonic`.
        deadline: when its result is of no more use, by `time.monotonic`.
        began: when its first engine call began, by `time.monotonic`.
        warnings: for its caller.
        released: whether its images have stopped counting as pending.
        waiting: its images that have not begun; the first begins next.
    """

    request: Request
    future: Future[BatchedOutput]
    images: list[ImageState]
    arrived: float
    deadline: float | None
    on_step: StepCallback | None
    warnings: tuple[str, ...]
    to_come: list[Pass] = field(default_factory=list)
    began: float | None = None
    stages: dict[Stage, StageTime] = field(default_factory=dict)
    released: bool = False
    waiting: deque[ImageState] = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = deque(self.images)

    def go_on(self, manifest: Manifest) -> bool:
        """Begin the next pass with what the images of this one became; False after the last.

        Args:
            manifest: the bundle's.
        """
        if not self.to_come:
            return False
        run = self.to_come.pop(0).after(self._results(), manifest.latents.downscale)
        due = self.images[0].due
        self.images = images_of(manifest, run)
        for image in self.images:
            image.due = due
        self.waiting = deque(self.images)
        return True

    @property
    def outcome(self) -> Outcome:
        """How it ended; its future is done."""
        if self.future.cancelled():
            return "cancelled"
        error = self.future.exception()
        if error is None:
            return "done"
        return "late" if isinstance(error, DeadlineError) else "failed"

    def settle(self, outcome: BatchedOutput | BaseException) -> None:
        """Give the future its outcome, unless its caller has cancelled it."""
        try:
            if isinstance(outcome, BaseException):
                self.future.set_exception(ordinary(outcome))
            else:
                self.future.set_result(outcome)
        except InvalidStateError:
            pass
        except BaseException:  # of a callback of the future, which is its caller's
            logging.getLogger(__name__).exception("a callback of a request failed")

    def late(self, now: float) -> DeadlineError | None:
        """Return the error of a deadline that has passed."""
        if self.deadline is None or now <= self.deadline:
            return None
        return DeadlineError(
            f"the deadline of {self.deadline - self.arrived:g} s has passed: allow more time, or "
            "ask for fewer steps"
        )

    def output(self, manifest: Manifest, now: float) -> BatchedOutput:
        """Return the result; every image is done."""
        images = as_asked(manifest, self.request, self._results())
        waited = (self.began or now) - self.arrived
        return BatchedOutput(
            images, self.request, waited, now - self.arrived, self.stages, self.warnings
        )

    def _results(self) -> np.ndarray:
        return np.stack([image.result for image in self.images if image.result is not None])


def images_of(manifest: Manifest, run: Pass) -> list[ImageState]:
    """Prepare the images of a pass."""
    return [
        ImageState.of(manifest, run.request, index, run.run_plan, run.earlier, run.later)
        for index in range(run.request.images)
    ]


def partition(states: Iterable[RequestState]) -> tuple[list[RequestState], list[RequestState]]:
    """Return the requests whose futures are open, and those whose are done."""
    left: list[RequestState] = []
    done: list[RequestState] = []
    for state in states:
        (done if state.future.done() else left).append(state)
    return left, done
