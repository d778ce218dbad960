"""`tgate-export cache`: each of its commands is one file, `cache_<name>.py`."""

from __future__ import annotations

import click

from tgate_export.cli._lazy import lazy_group

COMMANDS = {
    "list": "Show what is in the cache, and how large it is.",
    "clean": "Empty the cache.",
}


@click.group(name="cache", cls=lazy_group(COMMANDS, "tgate_export.cli.cache_"))
def command() -> None:
    """Look after what builds keep for one another.

    Exported graphs, sampler tables and hashes of large files are kept in TGATE_EXPORT_CACHE, else
    in XDG_CACHE_HOME/tgate-export, else in ~/.cache/tgate-export. Graphs take 20 GB or a tenth of
    the free disk at most, or what TGATE_EXPORT_CACHE_SIZE says (50GB; 0 keeps none); those that
    were used least recently go first.
    """
