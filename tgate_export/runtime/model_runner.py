"""Runs a stage for the images that share a call: the engine of pipelines and of batchers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.runtime.backends.base import Backend
from tgate_export.runtime.buffers import NEGATIVE
from tgate_export.runtime.image_state import ImageState, Stage
from tgate_export.runtime.input_batch import InputBatch, Span
from tgate_export.runtime.plan import BatchShape
from tgate_export.runtime.text_encoder import TextEncoder


class ModelRunner:
    """What is done with a backend: passive, driven in the caller's thread, a turn at a time."""

    def __init__(
        self,
        backend: Backend,
        bundle: Bundle,
        texts: TextEncoder,
        *,
        whole_batches: bool = False,
    ) -> None:
        """Run nothing yet.

        Args:
            backend: that runs engines.
            bundle: whose they are.
            texts: encodes prompts.
            whole_batches: see `InputBatch`.
        """
        self._backend = backend
        self._manifest = bundle.manifest
        self._texts = texts
        self._whole_batches = whole_batches
        self._input_batch: InputBatch | None = None
        self._stale = False  # its launches are of engines that somebody else has bound since

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the backend for the block; see `Turns.take`.

        Raises:
            BundleError: somebody wrote to a file that engines compute from.
        """
        with self._backend.turns.take(self) as still_bound:
            self._stale |= not still_bound
            self._backend.check_files()
            yield

    def input_batch(self, shape: BatchShape) -> InputBatch:
        """Return the batch of a shape: the last one, if it was of the same; within a turn.

        Raises:
            BackendError: memory or engines for it cannot be had.
        """
        if self._input_batch is not None and (self._stale or self._input_batch.shape != shape):
            # A backend serves one shape at a time. Where an image's rows cannot be taken, it keeps
            # them here, and the next turn tries again.
            self._input_batch.release_all()
            self._input_batch = None
        if self._input_batch is None:
            self._input_batch = InputBatch(
                self._backend, self._manifest, shape, whole_batches=self._whole_batches
            )
        self._stale = False
        return self._input_batch

    def run(self, shape: BatchShape, stage: Stage, members: Sequence[ImageState]) -> float:
        """Take images of one size through a stage; return the seconds that engines took.

        Raises:
            BackendError: memory or engines for the images' size cannot be had.
        """
        input_batch = self.input_batch(shape)
        spans: list[Span] = []
        ended: Sequence[ImageState] = ()
        if stage == "encode":
            spans += [self.encode_images(input_batch, members)]
            spans += [self.encode_prompts(input_batch, members)]
        elif stage == "decode":
            ended = members
            results, span = input_batch.decode(members)
            spans.append(span)
        elif stage != "done":
            spans += input_batch.denoise(stage, members)
            ended = [m for m in members if m.stage == "decode" and m.wants_latents]
            results = input_batch.latents(ended)
        if ended:
            for member, result in zip(ended, results, strict=True):
                member.end(result)
            input_batch.leave(ended)
        self._backend.synchronize()
        return sum(self._backend.seconds(span.start, span.end) for span in spans)

    def latents(self, image: ImageState) -> np.ndarray:
        """Return an image's sample [C, h, w] f32 after the step that it has just taken."""
        if image.result is not None:
            return image.result
        assert self._input_batch is not None  # it took the step
        return self._input_batch.latents([image])[0]

    def noise_pred(self, image: ImageState) -> np.ndarray:
        """Return the prediction [C, h, w] f32 of the step that an image has just taken."""
        assert self._input_batch is not None  # it took the step
        return self._input_batch.noise_pred(image)

    def encode_prompts(
        self,
        input_batch: InputBatch,
        members: Sequence[ImageState],
        warn: Callable[[str], None] | None = None,
    ) -> Span:
        """Give images the conditions that their prompts are.

        Args:
            input_batch: that encodes.
            members: the images.
            warn: told of what of a prompt is left out.
        """
        prompts = {
            (member, prefix): prompt
            for member in members
            for prefix, prompt in self._texts.inputs(member).items()
        }
        if warn is not None:
            for message in [each for prompt in prompts.values() for each in prompt.warnings]:
                warn(message)
        start = self._backend.mark()
        encoded = self._texts.encode(input_batch, prompts.values())
        end = self._backend.mark()
        for (member, prefix), prompt in prompts.items():
            for name, row in encoded[prompt].items():
                member.state[prefix + name] = row
                if member.alone:
                    member.state[NEGATIVE + name] = row
        for member in members:
            member.prompts = {}
        return Span(start, end)

    def encode_images(self, input_batch: InputBatch, members: Sequence[ImageState]) -> Span:
        """Encode what the VAE is to encode, if anything."""
        pictures = [(member, member.image) for member in members if member.image is not None]
        start = self._backend.mark()
        rows = input_batch.encode_images([picture for _, picture in pictures]) if pictures else []
        end = self._backend.mark()
        for (member, _), row in zip(pictures, rows, strict=True):
            if member.request.begins_with_image:
                member.begin(np.asarray(row))
            else:  # a video's denoiser is told it
                (output,) = self._manifest.graph("vae_encoder").outputs
                member.state[output.name] = row
            member.image = None
        return Span(start, end)
