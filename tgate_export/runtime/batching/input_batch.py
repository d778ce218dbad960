"""The buffers of one batch, and the engine calls on them: rows in, launches, rows out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.backends.base import Backend, Execute
from tgate_export.runtime.batching.plan import plan_calls
from tgate_export.runtime.image_state import ImageState
from tgate_export.runtime.plan import Launch, Slot


class InputBatch:
    """Memory for the largest batch of one image size; a call uses the first rows of it.

    Launches are bound once for each batch size. A row is copied in only when the buffer does not
    hold it already: text conditions and caches stay where they are from call to call.

    Attributes:
        batch: the largest.
        size: height and width in pixels.
        engine_seconds: spent in engines so far, without the copies of rows around them.
    """

    def __init__(
        self, backend: Backend, manifest: Manifest, batch: int, height: int, width: int
    ) -> None:
        self.batch = batch
        self.size = (height, width)
        self._backend = backend
        self._smallest = min(manifest.batch.min, batch)
        self._plan = plan_calls(manifest, batch, height, width)
        self._memory = backend.allocate(self._plan)
        self._steps = dict(zip(manifest.phases, self._plan.steps, strict=True))
        self._bound: dict[tuple[str, int], Execute] = {}
        self._resident: dict[str, dict[int, np.ndarray]] = {}
        self.engine_seconds = 0.0
        for launch in self._plan.launches:  # what a backend does for a batch, it does now
            self._execute(launch, batch)

    def encode(self, texts: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Run the text encoder on at most `batch` texts' inputs; return each one's outputs."""
        (launch,) = self._plan.encode
        inputs = {
            slot.buffer: [text[name] for text in texts] for name, slot in launch.inputs.items()
        }
        rows = range(len(texts))
        outputs = self._call((launch,), inputs, dict.fromkeys(launch.outputs, rows))
        return [{name: outputs[name][row] for name in launch.outputs} for row in rows]

    def encode_images(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the latents [C, h, w] of at most `batch` images [H, W, 3] f32 in [0, 1]."""
        launch = self._plan.encode_image
        assert launch is not None  # `check_graphs` refuses a request that needs it
        rows = range(len(images))
        (source,), (latents,) = launch.inputs.values(), launch.outputs.values()
        outputs = self._call((launch,), {source.buffer: images}, {latents.buffer: rows})
        return [outputs[latents.buffer][row] for row in rows]

    def denoise(self, phase: str, members: Sequence[ImageState]) -> None:
        """Take one step of at most `batch` images that are in the same phase."""
        members = arrange(members)
        denoiser, sampler = self._steps[phase]
        made = {slot.buffer for slot in denoiser.outputs.values()}
        read = {slot.buffer for launch in (denoiser, sampler) for slot in launch.inputs.values()}
        inputs = {buffer: [member.input(buffer) for member in members] for buffer in read - made}
        rows = range(len(members))
        wanted: dict[str, Iterable[int]] = dict.fromkeys(
            ("sample.1", "history.1", "denoiser_input"), rows
        )
        for name, slot in denoiser.outputs.items():
            # Of the caches, only those of an image that a later step of its reads.
            wanted[slot.buffer] = [row for row in rows if name in members[row].evaluation.writes]
        outputs = self._call((denoiser, sampler), inputs, wanted)
        for row, member in enumerate(members):
            found = {buffer: values[row] for buffer, values in outputs.items() if row in values}
            found["sample.0"], found["history.0"] = found.pop("sample.1"), found.pop("history.1")
            member.advance(found)

    def decode(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the images [H, W, 3] f32 in [0, 1] of at most `batch` latents [C, h, w]."""
        rows = range(len(latents))
        inputs = {self._plan.latents.buffer: latents}
        outputs = self._call((self._plan.decode,), inputs, {"images": rows})
        return [outputs["images"][row] for row in rows]

    def _call(
        self,
        launches: Sequence[Launch],
        inputs: Mapping[str, Sequence[np.ndarray]],
        wanted: Mapping[str, Iterable[int]],
    ) -> dict[str, dict[int, np.ndarray]]:
        """Copy rows in, launch, and return the wanted rows of buffers."""
        try:
            return self._copy_and_launch(launches, inputs, wanted)
        except BaseException:  # nobody knows which rows were written
            self._resident.clear()
            raise

    def _copy_and_launch(
        self,
        launches: Sequence[Launch],
        inputs: Mapping[str, Sequence[np.ndarray]],
        wanted: Mapping[str, Iterable[int]],
    ) -> dict[str, dict[int, np.ndarray]]:
        size = 0
        for buffer, values in inputs.items():
            size = max(len(values), self._smallest)
            held = self._resident.setdefault(buffer, {})
            changed = {row: value for row, value in enumerate(values) if held.get(row) is not value}
            if changed:
                self._memory.write_rows(Slot(buffer), changed)
                held.update(changed)
        started = self._backend.mark()
        for launch in launches:
            self._execute(launch, size)()
            for slot in launch.outputs.values():
                self._resident.pop(slot.buffer, None)
        ended = self._backend.mark()
        outputs: dict[str, dict[int, np.ndarray]] = {}
        for buffer, rows in wanted.items():
            listed = list(rows)
            values = self._memory.read_rows(Slot(buffer), listed) if listed else []
            outputs[buffer] = dict(zip(listed, values, strict=True))
            self._resident[buffer] = dict(outputs[buffer])
        self._backend.synchronize()
        self.engine_seconds += self._backend.seconds(started, ended)
        return outputs

    def _execute(self, launch: Launch, size: int) -> Execute:
        key = (launch.graph, size)
        if key not in self._bound:
            self._bound[key] = self._backend.prepare_batch(launch, self._memory, size)
        return self._bound[key]


def arrange(members: Sequence[ImageState]) -> list[ImageState]:
    """Put each in the row that it had in the last call, where that is one of the first and free."""
    rows: list[ImageState | None] = [None] * len(members)
    moved = []
    for member in members:
        if member.row is not None and member.row < len(rows) and rows[member.row] is None:
            rows[member.row] = member
        else:
            moved.append(member)
    arranged = [member or moved.pop() for member in rows]
    for row, member in enumerate(arranged):
        member.row = row
    return arranged
