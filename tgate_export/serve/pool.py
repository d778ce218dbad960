"""The models of a server, by name: loaded at first use, and put away when memory is short."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.batching import Batcher, BatchingOptions
from tgate_export.serve.errors import HttpError
from tgate_export.serve.previews import LatentPreview

_log = logging.getLogger("tgate_export.serve")


@dataclass(eq=False)
class Model:
    """A bundle that is served.

    Attributes:
        name: what requests call it.
        path: the bundle's folder.
        manifest: what it holds.
        created: when it was built, in seconds since 1970.
        preview: makes latents visible.
        batcher: runs it; None while it is not loaded.
        users: requests that are using it, or wait for it to load.
        used: when the last one ended, by `time.monotonic`.
        loading: its loading, which goes on when who began it leaves.
    """

    name: str
    path: Path
    manifest: Manifest
    created: int
    preview: LatentPreview = field(default_factory=LatentPreview)
    batcher: Batcher | None = None
    users: int = 0
    used: float = 0.0
    loading: asyncio.Task[None] | None = None

    @property
    def bytes(self) -> int:
        """The files of the bundle that are loaded: about the memory of its weights."""
        return sum(file.bytes for file in self.manifest.files.values())


class ModelPool:
    """Opens bundles, and lends their batchers."""

    def __init__(
        self,
        bundles: Mapping[str, Path],
        backend: str = "auto",
        options: BatchingOptions | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Read what the bundles hold; nothing is loaded yet.

        Args:
            bundles: folders, by the names that requests call them; the first is for requests that
                name none.
            backend: of all of them; see `TGatePipeline.from_bundle`.
            options: of all of them.
            memory_bytes: see `ServeOptions`.

        Raises:
            BundleError: one is missing, damaged, or newer than this package.
            InvalidRequestError: one cannot be served, or there is none.
        """
        self._backend = backend
        self._options = options or BatchingOptions()
        self._memory_bytes = memory_bytes
        self._room = asyncio.Lock()  # one model at a time is loaded, and makes room for itself
        self.closing = False
        self.models: dict[str, Model] = {}
        for name, path in bundles.items():
            self.models[name] = self._read(name, path)
        if not self.models:
            raise InvalidRequestError("no bundle to serve: name at least one")

    def _read(self, name: str, path: Path) -> Model:
        manifest = read_manifest(path)
        if manifest.latents.video:
            raise InvalidRequestError(
                f"{path} makes videos, which are not served over HTTP yet: leave it out"
            )
        created = int((path / "manifest.json").stat().st_mtime)
        return Model(name, path, manifest, created)

    def find(self, name: str | None) -> Model:
        """Return a model by name; the first when no name is given.

        Raises:
            HttpError: there is none of that name.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise HttpError(
                404,
                f"unknown model {name!r:.60}: there are {', '.join(self.models)}",
                code="model_not_found",
                field="model",
            )
        return self.models[name]

    def load_first(self) -> None:
        """Load the first model now, before there is an event loop.

        Raises:
            BackendError, BundleError: it cannot be loaded.
        """
        model = self.find(None)
        model.batcher = self._open(model)

    @asynccontextmanager
    async def lend(self, model: Model) -> AsyncIterator[Batcher]:
        """Load a model if it is not, and keep it loaded for the block.

        Raises:
            HttpError: there is no room for it, or the server is closing.
            BackendError, BundleError: it cannot be loaded.
        """
        model.users += 1
        try:
            if model.batcher is None:
                if model.loading is None or model.loading.done():
                    model.loading = asyncio.create_task(self._load(model))
                await asyncio.shield(model.loading)
            batcher = model.batcher
            if batcher is None:  # put away since, as the server closes
                raise HttpError(503, "the server is closing", code="closing")
            yield batcher
        finally:
            model.users -= 1
            model.used = monotonic()

    async def _load(self, model: Model) -> None:
        async with self._room:
            if self.closing:
                raise HttpError(503, "the server is closing", code="closing")
            await self._make_room(model)
            model.batcher = await asyncio.to_thread(self._open, model)

    def _open(self, model: Model) -> Batcher:
        started = monotonic()
        batcher = Batcher.from_bundle(model.path, self._backend, self._options)
        try:
            model.preview.learn_from(batcher)
        except BaseException:
            batcher.close(drain=False)
            raise
        _log.info(
            "loaded %s on %s in %.1f s", model.name, batcher.backend.name, monotonic() - started
        )
        return batcher

    async def _make_room(self, model: Model) -> None:
        """Close models that nobody uses until there is room for one more."""
        if self._memory_bytes is None:
            return
        if model.bytes > self._memory_bytes:
            raise HttpError(
                507,
                f"model {model.name} has {model.bytes / 1e9:.2f} GB of weights, more than the "
                f"{self._memory_bytes / 1e9:.2f} GB that this server may load",
                code="no_room",
            )
        while True:
            loaded = [each for each in self.models.values() if each.batcher is not None]
            if sum(each.bytes for each in loaded) + model.bytes <= self._memory_bytes:
                return
            idle = [each for each in loaded if not each.users]
            if not idle:
                raise HttpError(
                    503,
                    f"no room for model {model.name} while others generate: try again later",
                    code="no_room",
                    headers={"Retry-After": "5"},
                )
            oldest = min(idle, key=lambda each: each.used)
            batcher, oldest.batcher = oldest.batcher, None
            assert batcher is not None
            await asyncio.to_thread(batcher.close)
            _log.info("put %s away", oldest.name)

    @property
    def alive(self) -> bool:
        """Whether every loaded model's thread runs; without it all its requests would wait."""
        return all(m.batcher is None or m.batcher.alive for m in self.models.values())

    async def close(self) -> None:
        """Take nothing more on, and end what was begun."""
        self.closing = True
        async with self._room:
            for model in self.models.values():
                batcher, model.batcher = model.batcher, None
                if batcher is not None:
                    await asyncio.to_thread(batcher.close)
