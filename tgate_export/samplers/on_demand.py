"""A table that a run asks for and its bundle lacks: the program that `runtime` starts.

    python -m tgate_export.samplers.on_demand FILE < task.json

The task has the fields of `TableRequest`. The table is written to FILE, or the reason why there is
none to stdout, in one line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tgate_export.samplers.table_cache import TableRequest, cached_sampler, why_left_out


def _main(file: Path) -> None:
    request = TableRequest(**json.load(sys.stdin))
    try:
        cached_sampler(request, file)
    except OSError:
        raise
    except Exception as error:  # diffusers refuses configurations by errors of any class
        print(why_left_out(request.name, error))  # noqa: T201


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
