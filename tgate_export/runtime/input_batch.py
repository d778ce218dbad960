"""A batch: its buffers, the images in its rows, and the engine calls on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.backends.base import Backend, Execute, Row
from tgate_export.runtime.backends.launching import bind
from tgate_export.runtime.image_state import LOOP, ImageState
from tgate_export.runtime.plan import BatchShape, Launch, plan_batch
from tgate_export.runtime.tiles import Run, Tiling, decode_tiles, encode_tiles

# What has two buffers, of which the sampler reads one and writes the other: names by buffer.
_ALTERNATING = {f"{name}.{parity}": name for name in ("sample", "history") for parity in (0, 1)}


class Span(NamedTuple):
    """Marks of the backend before and after launches; see `Backend.seconds`."""

    start: Any
    end: Any


class InputBatch:
    """Memory for the largest batch of one image size; a call uses the first rows of it.

    Launches are bound once for each number of images. What an evaluation makes of an image stays
    in the image's row until another one needs the row: images that go on together move nothing.
    What an image brings is copied in when the row does not hold it already.

    Attributes:
        shape: of the batch.
    """

    def __init__(
        self,
        backend: Backend,
        manifest: Manifest,
        shape: BatchShape,
        *,
        whole_batches: bool = False,
    ) -> None:
        """Allocate and bind.

        Args:
            backend: that runs engines.
            manifest: of the bundle that they are of.
            shape: of the batch.
            whole_batches: compute all rows in every call, also those that no image is in.
        """
        self.shape = shape
        self._backend = backend
        self._manifest = manifest
        self._smallest = shape.batch if whole_batches else min(manifest.batch.min, shape.batch)
        self._plan = plan_batch(manifest, shape)
        self._memory = backend.allocate(self._plan.bindings)
        self._bound: dict[tuple[str, int, int], Execute] = {}
        # By buffer and row, what was copied there and was not written over.
        self._held: dict[str, dict[int, Row]] = {}
        self._seats: list[ImageState | None] = [None] * shape.batch
        self._parity = 0  # which of its two buffers the sample is in
        self._staged: tuple[list[ImageState], dict[str, Callable[[int], None]]] = ([], {})
        # The last step's, after which all but what the loop gives is where it is read.
        self._settled: tuple[str, Sequence[ImageState]] | None = None
        for launch in self._plan.bindings.launches:  # what a backend does for a batch, it does now
            self._execute(launch, shape.batch)

    def encode(self, texts: Sequence[Mapping[str, Row]]) -> list[dict[str, Row]]:
        """Run the prompt encoder on at most `batch` inputs; return each one's outputs."""
        launch = self._plan.encode
        self._call(launch, {name: [text[name] for text in texts] for name in launch.inputs})
        made = {
            name: self._memory.take_rows(buffer, range(len(texts)))
            for name, buffer in launch.outputs.items()
        }
        return [{name: rows[index] for name, rows in made.items()} for index in range(len(texts))]

    def encode_images(self, images: Sequence[np.ndarray]) -> list[Row]:
        """Return what the VAE makes of at most `batch` images [H, W, 3] f32 in [0, 1]."""
        launch = self._plan.encode_image
        assert launch is not None  # `check_graphs` refuses a request that needs it
        if tiling := self._tiling(launch):
            return list(encode_tiles(tiling, images, self._run_tiles(launch, [])))
        (source,), (output,) = launch.inputs, launch.outputs.values()
        self._call(launch, {source: images})
        return self._memory.take_rows(output, range(len(images)))

    def decode(self, members: Sequence[ImageState]) -> tuple[list[np.ndarray], Span]:
        """Return the images [H, W, 3] f32 in [0, 1] of at most `batch` that took their steps."""
        self._release(members)
        launch = self._plan.decode
        samples = [member.state["sample"] for member in members]
        if tiling := self._tiling(launch):
            spans: list[Span] = []
            run = self._run_tiles(launch, spans)
            images = decode_tiles(tiling, map(np.asarray, samples), run)
            return images, Span(spans[0].start, spans[-1].end)
        (source,) = launch.inputs
        span = self._call(launch, {source: samples})
        return self._memory.read_rows("images", range(len(members))), span

    def _tiling(self, launch: Launch) -> Tiling | None:
        """Return where the tiles of a graph of the VAE lie; None for one that takes all at once."""
        tiles = self._manifest.graph(launch.graph).tiles
        if tiles is None:
            return None
        return Tiling.of(self._manifest, tiles, self.shape.height, self.shape.width)

    def _run_tiles(self, launch: Launch, spans: list[Span]) -> Run:
        """Return what runs a graph on a tile of each image, and notes when it did."""
        (source,), (output,) = launch.inputs, launch.outputs.values()

        def run(cuts: list[np.ndarray]) -> list[np.ndarray]:
            spans.append(self._call(launch, {source: cuts}))
            return self._memory.read_rows(output, range(len(cuts)))

        return run

    def latents(self, members: Sequence[ImageState]) -> list[np.ndarray]:
        """Return the samples [C, h, w] f32 of images that this batch has."""
        return [
            self._memory.read_rows(self._buffer("sample"), [member.row])[0]
            if "sample" in member.kept and member.row is not None
            else np.asarray(member.state["sample"])
            for member in members
        ]

    def noise_pred(self, member: ImageState) -> np.ndarray:
        """Return the prediction [C, h, w] f32 of the step that an image has just taken here."""
        return self._memory.read_rows("noise_pred", [_row(member)])[0]

    def read(self, buffer: str) -> np.ndarray:
        """Return a buffer's contents, such as a cache [B, ...]; waits for the device."""
        return self._memory.read(buffer)

    def stage(self, members: Sequence[ImageState]) -> None:
        """Copy in now all that images bring which take all their steps together.

        That is what any of their phases reads, and what the loop gives each step.
        """
        self._seat(members)
        for launch in self._plan.denoise.values():
            self._fill(
                [each for each in launch.inputs.values() if each in members[0].state], members
            )
        sampler = members[0].run_plan.sampler
        loaders = {}
        steps = range(len(sampler.timesteps))
        for name in LOOP:
            if name == "noise" and not sampler.draws_noise:
                self._copy(name, {row: m.loop_row(name, 0) for row, m in enumerate(members)})
                continue
            spec = self._plan.buffers[name]
            values = np.zeros((len(steps), *spec.shape), spec.dtype)
            for step in steps:
                for row, member in enumerate(members):
                    values[step, row] = member.loop_row(name, step)
            loaders[name] = self._memory.stage(name, values)
        self._staged = (list(members), loaders)

    def denoise(self, phase: str, members: Sequence[ImageState]) -> tuple[Span, Span]:
        """Take one step of at most `batch` images that are in the same phase.

        Returns:
            when the denoiser ran, and the sampler.
        """
        if self._settled != (phase, members):
            members = arrange(members)  # the callers' order may differ from the rows'
        settled = self._settled == (phase, members)
        if not settled:
            self._seat(members)
        denoiser, sampler = self._plan.denoise[phase], self._plan.sample[self._parity]
        size = max(len(members), self._smallest)
        try:
            if not settled:
                read = {*denoiser.inputs.values(), *sampler.inputs.values()}
                self._fill(read.difference(denoiser.outputs.values()), members)
            self._fill_loop(members)
            start = self._backend.mark()
            self._launch(denoiser, size)
            between = self._backend.mark()
            self._launch(sampler, size)
            end = self._backend.mark()
        except BaseException:  # nobody knows which rows were written
            self._forget(members)
            raise
        self._parity = 1 - self._parity
        if not settled:
            self._settled = (phase, members)
        for member in members:
            member.advance()
        return Span(start, between), Span(between, end)

    def abandon(self, members: Sequence[ImageState]) -> None:
        """Keep nothing of images that nobody waits for any more."""
        for member in members:
            member.abandoned = True
        self.leave(members)
        self._staged = ([], {})

    def leave(self, members: Sequence[ImageState]) -> None:
        """Give up the rows of images that are done, and what they brought to them."""
        self._release(members)
        self._held.pop("latents", None)

    def release_all(self) -> None:
        """Let every image take along what it has here; the batch may be dropped then."""
        self._release(self._seats)

    def _seat(self, members: Sequence[ImageState]) -> None:
        """Give images the first rows, and let those that had them take along what they need."""
        seats = [*members, *[None] * (self.shape.batch - len(members))]
        self._release(
            [one for one, next_one in zip(self._seats, seats, strict=True) if one is not next_one]
        )
        for row, member in enumerate(members):
            member.row = row
        self._seats = seats

    def _forget(self, members: Sequence[ImageState]) -> None:
        """Take nothing for granted of images whose step failed, nor of any buffer."""
        self._settled = None
        self._held.clear()
        for member in members:
            member.kept.clear()

    def _release(self, seats: Sequence[ImageState | None]) -> None:
        """Give images what they still need of their rows, and the rows to whoever comes."""
        self._settled = None
        members = [member for member in seats if member is not None]
        wanted: dict[str, list[ImageState]] = {}
        for member in members:
            for name in member.kept & member.needs:
                wanted.setdefault(name, []).append(member)
        for name, owners in wanted.items():
            rows = [_row(owner) for owner in owners]
            values = self._memory.take_rows(self._buffer(name), rows)
            for owner, value in zip(owners, values, strict=True):
                owner.state[name] = value
        for member in members:
            member.kept.clear()
            if member.row is None:
                continue
            if self._seats[member.row] is member:
                self._seats[member.row] = None
            if self._seats[member.row] is None and not member.needs:
                for held in self._held.values():
                    held.pop(member.row, None)

    def _buffer(self, name: str) -> str:
        return f"{name}.{self._parity}" if name in _ALTERNATING.values() else name

    def _fill(self, buffers: Iterable[str], members: Sequence[ImageState]) -> None:
        """See to it that buffers have every member's row, but for what the loop gives a step."""
        for buffer in buffers:
            name = _ALTERNATING.get(buffer, buffer)
            if name not in LOOP:
                rows = {row: m.state[name] for row, m in enumerate(members) if name not in m.kept}
                self._copy(buffer, rows)

    def _fill_loop(self, members: Sequence[ImageState]) -> None:
        """Copy in what the loop gives the members' next steps."""
        together, loaders = self._staged
        if members == together:
            for name, load in loaders.items():
                load(members[0].step)
                self._held.pop(name, None)
            return
        for name in LOOP:
            self._copy(name, {row: m.loop_row(name, m.step) for row, m in enumerate(members)})

    def _copy(self, buffer: str, rows: Mapping[int, Row]) -> None:
        """Copy rows into a buffer, but for those that it holds."""
        held = self._held.setdefault(buffer, {})
        changed = {row: value for row, value in rows.items() if held.get(row) is not value}
        if changed:
            self._memory.write_rows(buffer, changed)
            held.update(changed)

    def _call(self, launch: Launch, inputs: Mapping[str, Sequence[Row]]) -> Span:
        """Copy rows of inputs in, and launch."""
        self._settled = None
        try:
            for name, rows in inputs.items():
                self._copy(launch.inputs[name], dict(enumerate(rows)))
            start = self._backend.mark()
            self._launch(launch, max(self._smallest, *map(len, inputs.values())))
            return Span(start, self._backend.mark())
        except BaseException:
            self._held.clear()
            raise

    def _launch(self, launch: Launch, size: int) -> None:
        self._execute(launch, size)()
        for buffer in launch.outputs.values():
            self._held.pop(buffer, None)

    def _execute(self, launch: Launch, size: int) -> Execute:
        key = (launch.graph, id(launch), size)
        if key not in self._bound:
            self._bound[key] = bind(self._backend, launch, self._memory, size)
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
    free = iter(moved)
    return [member or next(free) for member in rows]


def _row(member: ImageState) -> int:
    assert member.row is not None  # it is seated
    return member.row
