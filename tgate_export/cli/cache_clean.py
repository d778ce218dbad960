"""`tgate-export cache clean`."""

from __future__ import annotations

import contextlib

import click

from tgate_export.cli._console import megabytes, print_json, stderr
from tgate_export.cli.cache_list import OTHERS


@click.command(name="clean")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(as_json: bool) -> None:
    """Empty the cache: the next build exports its graphs and compiles its samplers again.

    What a build is writing at the moment stays, and so does every bundle.
    """
    from tgate_export.common.user_cache import cache_folder, cached_files
    from tgate_export.export.content_cache import user_content_cache

    cache = user_content_cache()
    before = sum(entry.bytes for entry in cache.entries())
    cache.clean()
    freed = before - sum(entry.bytes for entry in cache.entries())
    for name in OTHERS:
        for file in cached_files(name):
            with contextlib.suppress(OSError):
                size = file.lstat().st_size
                file.unlink()
                freed += size
    folder = cache_folder("graphs").parent
    if as_json:
        print_json({"folder": str(folder), "freed_bytes": freed})
        return
    stderr().print(f"Freed {megabytes(freed)} in {folder}.", soft_wrap=True)
