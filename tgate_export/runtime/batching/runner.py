"""Runs a stage for the images that share a call."""

from __future__ import annotations

from collections.abc import Sequence

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.backends.base import Backend
from tgate_export.runtime.batching.arena import Arena
from tgate_export.runtime.batching.texts import TextEncoder
from tgate_export.runtime.batching.trajectory import Stage, Trajectory


class Runner:
    """What a batcher does with the backend, one call a turn."""

    def __init__(
        self, backend: Backend, manifest: Manifest, texts: TextEncoder, batch: int
    ) -> None:
        self._backend = backend
        self._manifest = manifest
        self._texts = texts
        self._batch = batch
        self._arena: Arena | None = None

    def run(self, stage: Stage, members: Sequence[Trajectory]) -> float:
        """Take images of one size through a stage; return the seconds that engines took.

        Raises:
            BackendError: memory or engines for the images' size cannot be had.
        """
        with self._backend.turns.take(self) as still_bound:
            if not still_bound:
                self._arena = None
            self._backend.check_files()
            return self._run(stage, members)

    def _run(self, stage: Stage, members: Sequence[Trajectory]) -> float:
        arena = self._arena_of(members[0].size)
        before = arena.engine_seconds
        if stage == "encode":
            self._encode(arena, members)
        elif stage == "decode":
            images = arena.decode([member.state["sample.0"] for member in members])
            for member, image in zip(members, images, strict=True):
                member.end(image)
        elif stage != "done":
            arena.denoise(stage, members)
            for member in members:
                if member.stage == "decode" and member.request.output_type == "latent":
                    member.end(member.state["sample.0"])
        return arena.engine_seconds - before

    def _encode(self, arena: Arena, members: Sequence[Trajectory]) -> None:
        texts = {
            (member, prefix): self._texts.text(text, 0 if prefix else member.request.clip_skip)
            for member in members
            for prefix, text in member.texts.items()
        }
        encoded = self._texts.encode(arena, texts.values())
        for (member, prefix), text in texts.items():
            member.state |= {prefix + name: row for name, row in encoded[text].items()}
        for member in members:
            member.texts.clear()
        with_image = [(member, member.image) for member in members if member.image is not None]
        if with_image:
            latents = arena.encode_images([image for _, image in with_image])
            for (member, _), row in zip(with_image, latents, strict=True):
                member.begin_with_image(row)

    def _arena_of(self, size: tuple[int, int]) -> Arena:
        if self._arena is None or self._arena.size != size:
            self._arena = None  # a backend serves one shape at a time
            self._arena = Arena(self._backend, self._manifest, self._batch, *size)
        return self._arena
