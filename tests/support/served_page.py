"""What tests of the served page wait for; its policy forbids the scripts that would poll it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

UNGATED, GATED = ".pane:nth-child(1)", ".pane:nth-child(2)"


def entries(page: Page, count: int) -> None:
    """Wait until the session has so many entries, and what is to be said of the last is said."""
    page.wait_for_selector(f"#history-list > li:nth-child({count}):last-child")
    page.wait_for_selector("#verdict:text-matches('PSNR|same picture|Done')")


def generate(page: Page, count: int) -> None:
    """Press the button, and wait until the session has so many entries."""
    page.click("#generate")
    entries(page, count)
