"""`tgate-export cache list`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from tgate_export.cli._console import megabytes, print_json, stdout

# What is kept besides graphs.
OTHERS = {"samplers": "sampler tables", "hashes": "hashes of large files"}


@click.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(as_json: bool) -> None:
    """Show what is in the cache, and how large it is."""
    from tgate_export.common.user_cache import cache_folder, cached_files
    from tgate_export.export.content_cache import user_content_cache

    cache = user_content_cache()
    entries = sorted(cache.entries(), key=lambda entry: -entry.used)
    others = {name: sum(file.lstat().st_size for file in cached_files(name)) for name in OTHERS}
    graphs = sum(entry.bytes for entry in entries)
    folder = cache_folder("graphs").parent
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "bytes": graphs + sum(others.values()),
                "most_graph_bytes": cache.most_bytes,
                "graphs": [
                    {
                        "key": entry.key,
                        "label": entry.label,
                        "bytes": entry.bytes,
                        "used": datetime.fromtimestamp(entry.used, UTC).isoformat(),
                    }
                    for entry in entries
                ],
                **{f"{name}_bytes": size for name, size in others.items()},
            }
        )
        return
    console = stdout()
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        console.print(f"{megabytes(entry.bytes):>10}  {used}  {entry.label}", soft_wrap=True)
    for name, size in others.items():
        console.print(f"{megabytes(size):>10}  {'':16}  {OTHERS[name]}", soft_wrap=True)
    console.print(
        f"{megabytes(graphs + sum(others.values())):>10}  in {folder}; graphs may take "
        f"{megabytes(cache.most_bytes)}",
        soft_wrap=True,
    )
