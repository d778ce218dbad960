"""Take pictures of the reports of `bench` and `probe` for the pages: wide, dark, and on a phone.

usage: scripts/report_pictures.py BENCH.html PROBE.html [--out docs]
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.chromium import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDE, PHONE, PHONE_HEIGHT, GAP = 1200, 390, 2000, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("probe", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    with chromium() as browser:
        for name, report, scheme in (
            ("bench", arguments.bench, "light"),
            ("bench-dark", arguments.bench, "dark"),
            ("probe", arguments.probe, "light"),
            ("probe-dark", arguments.probe, "dark"),
        ):
            save(picture(browser, report, scheme, WIDE), arguments.out / f"{name}.png")
        phones = [
            picture(browser, arguments.bench, "light", PHONE),
            picture(browser, arguments.probe, "dark", PHONE),
        ]
    both = Image.new("RGB", (2 * PHONE + GAP, PHONE_HEIGHT), "#888888")
    for index, phone in enumerate(phones):
        both.paste(phone.crop((0, 0, PHONE, PHONE_HEIGHT)), (index * (PHONE + GAP), 0))
    save(both, arguments.out / "reports-phone.png")


def picture(
    browser: Browser, report: Path, scheme: Literal["light", "dark"], width: int
) -> Image.Image:
    """Return a whole page as a reader of this colour scheme sees it."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(report.resolve().as_uri())
    taken = page.screenshot(full_page=True)
    page.close()
    return Image.open(io.BytesIO(taken)).convert("RGB")


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, and say how large it is."""
    image.save(path, optimize=True)
    print(f"{path}: {image.width}x{image.height}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
