"""What scripts that compare this package with others write: JSON, and a page beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any


def write_report(
    out: Path,
    packages: Iterable[str],
    steps: int,
    rows: Sequence[dict[str, Any]],
    markdown: Callable[[dict[str, Any]], Iterable[str]],
) -> None:
    """Write a report, and print its page.

    Args:
        out: the JSON file; the page has its name and `.md`.
        packages: whose versions it names.
        steps: of every run.
        rows: what was found.
        markdown: yields the page's lines.
    """
    report = {
        "date": date.today().isoformat(),
        "versions": {name: metadata.version(name) for name in packages},
        "steps": steps,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = "".join(f"{line}\n" for line in markdown(report))
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def versions(report: dict[str, Any]) -> str:
    """Return the packages of a report and its date, for people."""
    found = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"{found}, {report['date']}"
