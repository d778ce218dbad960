"""Runs a stage for the images that share a call."""

from __future__ import annotations

from collections.abc import Sequence

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.backends.base import Backend
from tgate_export.runtime.batching.input_batch import InputBatch
from tgate_export.runtime.batching.texts import TextEncoder
from tgate_export.runtime.buffers import NEGATIVE
from tgate_export.runtime.image_state import ImageState, Stage


class ModelRunner:
    """What a batcher does with the backend, one call a turn."""

    def __init__(
        self, backend: Backend, manifest: Manifest, texts: TextEncoder, batch: int
    ) -> None:
        self._backend = backend
        self._manifest = manifest
        self._texts = texts
        self._batch = batch
        self._input_batch: InputBatch | None = None

    def run(self, stage: Stage, members: Sequence[ImageState]) -> float:
        """Take images of one size through a stage; return the seconds that engines took.

        Raises:
            BackendError: memory or engines for the images' size cannot be had.
        """
        with self._backend.turns.take(self) as still_bound:
            if not still_bound:
                self._input_batch = None
            self._backend.check_files()
            return self._run(stage, members)

    def _run(self, stage: Stage, members: Sequence[ImageState]) -> float:
        input_batch = self._input_batch_of(members[0].size)
        before = input_batch.engine_seconds
        if stage == "encode":
            self._encode(input_batch, members)
        elif stage == "decode":
            images = input_batch.decode([member.state["sample.0"] for member in members])
            for member, image in zip(members, images, strict=True):
                member.end(image)
        elif stage != "done":
            input_batch.denoise(stage, members)
            for member in members:
                if member.stage == "decode" and member.request.output_type == "latent":
                    member.end(member.state["sample.0"])
        return input_batch.engine_seconds - before

    def _encode(self, input_batch: InputBatch, members: Sequence[ImageState]) -> None:
        texts = {
            (member, prefix): self._texts.text(
                text, member.request, member.index, negative=bool(prefix)
            )
            for member in members
            for prefix, text in member.texts.items()
        }
        encoded = self._texts.encode(input_batch, texts.values())
        for (member, prefix), text in texts.items():
            member.state |= {prefix + name: row for name, row in encoded[text].items()}
            if member.alone:
                member.state |= {NEGATIVE + name: row for name, row in encoded[text].items()}
        for member in members:
            member.texts.clear()
        with_image = [(member, member.image) for member in members if member.image is not None]
        if with_image:
            latents = input_batch.encode_images([image for _, image in with_image])
            for (member, _), row in zip(with_image, latents, strict=True):
                member.begin_with_image(row)

    def _input_batch_of(self, size: tuple[int, int]) -> InputBatch:
        if self._input_batch is None or self._input_batch.size != size:
            self._input_batch = None  # a backend serves one shape at a time
            self._input_batch = InputBatch(self._backend, self._manifest, self._batch, *size)
        return self._input_batch
