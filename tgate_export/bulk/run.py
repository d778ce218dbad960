"""A bulk run: what is not done yet of a file of prompts, into its folder."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tgate_export.bulk.output_folder import (
    FAILURES,
    IMAGES,
    Journal,
    WriteError,
    done_lines,
    in_use,
    partial_folder,
)
from tgate_export.bulk.prompt_file import PromptFile, check_defaults
from tgate_export.bulk.record import RunRecord, recorded, write_record
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bulk.worker import Result
from tgate_export.bundle.integrity import Bundle
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.runtime.backends import AUTO

GIVE_UP = 100  # lines in a row that fail: it is not the lines then
Place = tuple[int, int]  # number and offset of a line


@dataclass
class Tally:
    """How far a run is.

    Attributes:
        lines: with a prompt.
        before: images that were there.
        backend: what runs graphs.
        made: images that this run made.
        failed: lines that it could not make.
        warned: images with a part of their prompt left out.
    """

    lines: int
    before: int
    backend: str
    made: int = 0
    failed: int = 0
    warned: int = 0

    @property
    def left(self) -> int:
        """Lines that were not tried yet."""
        return self.lines - self.before - self.made - self.failed


Report = Callable[[Tally], None]


class Runner(Protocol):
    """Where lines are generated: in this process, or by a cluster."""

    def backend(self, settings: BulkSettings, bundle: Bundle) -> str:
        """Return the name of the backend that the settings' is there.

        Raises:
            BackendError: it cannot be used.
        """

    def results(
        self, settings: BulkSettings, bundle: Bundle, places: Iterator[Place]
    ) -> AbstractContextManager[Iterator[Result]]:
        """Generate lines, in any order, a bounded number of them at a time.

        Raises:
            TGateError: it cannot go on.
        """


def run_bulk(settings: BulkSettings, bundle: Bundle, runner: Runner, report: Report) -> Tally:
    """Generate every line whose image is not there.

    Args:
        settings: of the run.
        bundle: the open bundle.
        runner: generates.
        report: told after every line how far it is.

    Raises:
        InvalidRequestError: a line or a default that cannot be used, before anything is generated;
            or a folder that was made with something else.
        TGateError: another run has the folder, or this one cannot go on. What is done stays.
    """
    with in_use(settings.out), contextlib.ExitStack() as stack:
        before = recorded(settings.out)
        check_defaults(settings, bundle.manifest)
        with PromptFile(settings, bundle.manifest) as file:
            index = file.check(bundle)
        if settings.backend == AUTO and before is not None:
            settings = replace(settings, backend=before.backend)
        settings = replace(settings, backend=runner.backend(settings, bundle))
        record = RunRecord.of(settings, bundle.manifest, index.sha256, len(index.numbers))
        stack.enter_context(partial_folder(settings.out))
        if before is None:
            write_record(settings.out, record)
        journal = stack.enter_context(Journal(settings.out / IMAGES))
        if before is not None and journal.empty:
            write_record(settings.out, record)
        elif before is not None:
            _check_same(before, record, settings.out)
        done = done_lines(journal, settings.out, settings.kind, index.numbers[-1])
        tally = Tally(len(index.numbers), sum(done), settings.backend)
        report(tally)
        places = zip(index.numbers, index.offsets, strict=True)
        todo = (place for place in places if not done[place[0]])
        if tally.left:
            results = stack.enter_context(runner.results(settings, bundle, todo))
            report(tally)  # engines are loaded
            _collect(results, done, settings.out, journal, tally, report)
    return tally


def _collect(
    results: Iterable[Result],
    done: bytearray,
    out: Path,
    journal: Journal,
    tally: Tally,
    report: Report,
) -> None:
    """Write down what becomes of lines, of each once."""
    in_a_row = 0
    with contextlib.ExitStack() as stack:
        failures: Journal | None = None
        _remove(out / FAILURES)  # of an earlier run, whose lines are tried again
        for result in results:
            if result.stop:
                raise TGateError(result.stop)
            if done[result.entry["line"]]:
                continue
            if result.made:
                done[result.entry["line"]] = True
                journal.append(result.entry)
                tally.made += 1
                tally.warned += "warnings" in result.entry
                in_a_row = 0
            else:
                failures = failures or stack.enter_context(Journal(out / FAILURES))
                failures.append(result.entry)
                tally.failed += 1
                in_a_row += 1
            report(tally)
            if in_a_row == GIVE_UP:
                raise TGateError(
                    f"{GIVE_UP} lines in a row failed, the last, line {result.entry['line']}, with "
                    f"this: {result.entry['error']}"
                )


def _check_same(before: RunRecord, record: RunRecord, out: Path) -> None:
    """Refuse to go on with something else; warn of other versions, which may round otherwise."""
    found = before.differences(record)
    if found:
        raise InvalidRequestError(
            f"{out} was made with {', '.join(found)}: "
            "give the same to go on there, or name another folder"
        )
    changed = [
        f"{name} {before.versions.get(name, 'none')}, now {version}"
        for name, version in record.versions.items()
        if before.versions.get(name) != version
    ]
    if changed:
        warnings.warn(
            f"{out} was begun with {', '.join(changed)}: what is made now may differ by rounding "
            "from what it would have been",
            stacklevel=3,
        )


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(file, error) from None
