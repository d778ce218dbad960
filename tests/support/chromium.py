"""A page in a real Chromium, and what is looked for in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    """Open a Chromium, or skip the test that wants one."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt install chromium, or name one in CHROMIUM")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, chromium_sandbox=False
        )
        yield opened
        opened.close()


class Visit:
    """A page, and everything that it should not have done.

    A file loads nothing else; a page from a server, whose address ends with a slash, nothing from
    other servers.
    """

    def __init__(self, page: Page, place: Path | str) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._request)
        self._address = place if isinstance(place, str) else place.as_uri()
        page.goto(self._address)

    def _request(self, request: Any) -> None:
        served = self._address.endswith("/")
        own = (f"blob:{self._address}", self._address) if served else ()
        if request.url != self._address and not request.url.startswith(("data:", *own)):
            self.complaints.append(request.url)

    def result(self) -> str:
        """The JSON inside the page."""
        return str(self.page.text_content("#result"))

    def cells(self) -> list[list[list[str]]]:
        """The text of every table's body."""
        found: list[list[list[str]]] = self.page.evaluate(
            "[...document.querySelectorAll('table')].map(table => [...table.tBodies[0].rows]"
            ".map(row => [...row.cells].map(cell => cell.textContent)))"
        )
        return found

    def choose(self) -> list[tuple[str, str, str]]:
        """Press the arrow key through every row: what is checked, said, and seen at each."""
        chips = self.page.locator(".chooser").first.locator("input[type=radio]")
        chips.first.check(force=True)
        chips.first.focus()
        seen = []
        for _ in range(chips.count()):
            image = self.page.locator("img.shown").first
            assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
            seen.append(
                (
                    self.page.locator(".shown-name").first.inner_text(),
                    self.page.locator(".fact").first.inner_text(),
                    str(image.get_attribute("src")),
                )
            )
            self.page.keyboard.press("ArrowRight")
        return seen

    def overlapping_labels(self) -> list[str]:
        """Pairs of visible texts in one chart whose boxes share more than a hair."""
        found: list[str] = self.page.evaluate(OVERLAPS)
        return found

    def poor_contrasts(self) -> list[str]:
        """Visible texts below WCAG's 4.5 : 1."""
        found: list[str] = self.page.evaluate(CONTRASTS)
        return found


OVERLAPS = """
() => [...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width)
  .flatMap(svg => {
    const texts = [...svg.querySelectorAll("text")];
    const boxes = texts.map(text => text.getBoundingClientRect());
    const found = [];
    boxes.forEach((one, i) => boxes.slice(0, i).forEach((other, j) => {
      const width = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const height = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (width > 0.5 && height > 0.5)
        found.push(texts[i].textContent + " / " + texts[j].textContent);
    }));
    return found;
  })
"""
CONTRASTS = """
() => {
  const parse = colour => (colour.match(/[0-9.]+/g) || []).map(Number);
  const light = colour => {
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter(node => node.nodeType === 3);
    const text = own.map(node => node.data.trim()).join("");
    if (!text || !element.getClientRects().length || element.closest("title, script")) continue;
    const style = getComputedStyle(element);
    const ink = light(parse(element.closest("svg") ? style.fill : style.color).slice(0, 3));
    const page = light(behind(element));
    const ratio = (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
    if (ratio < 4.5) found.push(text.slice(0, 40) + " " + ratio.toFixed(2));
  }
  return found;
}
"""
# What reaches over the right edge without a container of its own that scrolls.
OUTSIDE = """
() => [...document.querySelectorAll("body *")].filter(element =>
  element.getBoundingClientRect().right > innerWidth + 0.5 && !element.closest(".scroll")
).map(element => element.tagName + " " + element.className)
"""


def fits_a_phone(page: Page, width: int = 390) -> bool:
    page.set_viewport_size({"width": width, "height": 844})
    fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return bool(fits) and page.evaluate(OUTSIDE) == []
