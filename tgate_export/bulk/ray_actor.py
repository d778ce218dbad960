"""What runs in the processes of a Ray cluster: a batcher of its own, that images are asked of."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tgate_export.bulk.local import results_of
from tgate_export.bulk.output_folder import RECORD
from tgate_export.bulk.prompt_file import PromptFile
from tgate_export.bulk.record import hash_of_bundle
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bulk.worker import Result, Worker
from tgate_export.bundle.integrity import open_bundle
from tgate_export.common.errors import TGateError
from tgate_export.runtime.backends import select


@dataclass(frozen=True)
class ActorArguments:
    """What an actor is made with.

    Attributes:
        settings: of the run; the backend is one that there is where it runs.
        prompts_sha256: of the file of prompts, where the run was started.
        bundle_sha256: of the bundle's manifest there.
    """

    settings: BulkSettings
    prompts_sha256: str
    bundle_sha256: str


class Actor:
    """Generates blocks of lines, one after another, on whatever machine it is."""

    def __init__(self, arguments: ActorArguments) -> None:
        """Load engines; what goes wrong is what becomes of the first line."""
        self._stop = ""
        try:
            self._load(arguments)
        except TGateError as error:
            self._stop = f"{socket.gethostname()}: {error}"

    def _load(self, arguments: ActorArguments) -> None:
        settings = arguments.settings
        for path in (settings.bundle, settings.prompts, settings.out / RECORD):
            if not path.exists():
                raise TGateError(
                    f"there is no {path}: the bundle, the prompts and the folder for the images "
                    "have to be where all machines have them at the same place"
                )
        if hash_of_bundle(settings.bundle) != arguments.bundle_sha256:
            raise TGateError(f"{settings.bundle} is another bundle than where the run was started")
        bundle = open_bundle(settings.bundle, cache_hashes=True)
        self._file = PromptFile(settings, bundle.manifest)
        if self._file.sha256() != arguments.prompts_sha256:
            raise TGateError(f"{settings.prompts} is another file than where the run was started")
        backend = select(settings.backend, bundle, settings.backend_options)
        self._worker = Worker(settings, bundle, backend)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
        """Yield what became of a block's lines, in their order.

        When an actor dies, Ray runs its block again and skips as many results as it has, so these
        must not come in another order then.
        """
        places = [
            (int(number), int(offset))
            for number, offset in zip(batch["number"], batch["offset"], strict=True)
        ]
        if self._stop:
            yield _row(Result({"line": places[0][0]}, made=False, stop=self._stop))
            return
        found = results_of(self._worker, self._file, iter(places))
        try:
            for result in in_order(found, [number for number, _ in places]):
                yield _row(result)
        except TGateError as error:  # the file of prompts was changed, say
            yield _row(Result({"line": places[0][0]}, made=False, stop=str(error)))


def in_order(results: Iterable[Result], numbers: Sequence[int]) -> Iterator[Result]:
    """Yield results in the order of the lines' numbers; one that stops the run comes at once."""
    held: dict[int, Result] = {}
    waiting = iter(numbers)
    wanted = next(waiting, None)
    for result in results:
        if result.stop:
            yield result
            return
        held[result.entry["line"]] = result
        while wanted in held:
            yield held.pop(wanted)
            wanted = next(waiting, None)


def _row(result: Result) -> dict[str, list[str]]:
    return {"result": [json.dumps(asdict(result))]}
