"""A bulk run in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from tgate_export.bulk.prompt_file import PromptFile
from tgate_export.bulk.run import Place
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bulk.worker import Result, Worker
from tgate_export.bundle.integrity import Bundle
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import Backend


class LocalRunner:
    """Generates with the engines of this process; see `Runner`."""

    def __init__(self) -> None:
        self._backend: Backend | None = None

    def backend(self, settings: BulkSettings, bundle: Bundle) -> str:
        """Return the name of the backend that the settings' is here."""
        self._backend = select(settings.backend, bundle, settings.backend_options)
        return self._backend.name

    @contextmanager
    def results(
        self, settings: BulkSettings, bundle: Bundle, places: Iterator[Place]
    ) -> Iterator[Iterator[Result]]:
        """Generate lines; the block's end drops what is not done."""
        assert self._backend is not None  # its name was asked for
        worker = Worker(settings, bundle, self._backend)
        try:
            with PromptFile(settings, bundle.manifest) as file:
                yield results_of(worker, file, places)
        finally:
            worker.close()


def results_of(worker: Worker, file: PromptFile, places: Iterator[Place]) -> Iterator[Result]:
    """Start lines as others end, and yield what became of them."""
    done: SimpleQueue[Result] = SimpleQueue()
    started = ended = 0
    for number, offset in places:
        while started - ended >= worker.window:
            yield done.get()
            ended += 1
        worker.start(file.line(number, offset), done.put)
        started += 1
    for _ in range(started - ended):
        yield done.get()
