"""The HTML reports in a real Chromium: what they show is what the JSON says, and nothing loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.bench import Clock, FakeBackend, fake_pipeline
from tgate_export.bench import compare as compare_module
from tgate_export.bench.compare import compare
from tgate_export.bench.measure import Plan, Setup
from tgate_export.bench.probe import Probe
from tgate_export.bench.report.bench import bench_page
from tgate_export.bench.report.probe import probe_page
from tgate_export.bench.result import BenchResult, ProbeResult
from tgate_export.bench.tables import probe_tables, tables

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# A prompt that ends scripts and tables, were it not escaped.
PROMPT = '</script><b>a "fox"</b> & [100%] ${x}'
ARGUMENTS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
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
    """A page, and everything that it should not have done."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._request)
        self._address = path.as_uri()
        page.goto(self._address)

    def _request(self, request: Any) -> None:
        if request.url != self._address and not request.url.startswith("data:"):
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

    def slide(self) -> list[tuple[str, str, str]]:
        """Press the arrow key through every gate: what is shown, spoken, and seen at each."""
        slider = self.page.locator("input[type=range]").first
        slider.focus()
        slider.press("Home")
        seen = []
        for _ in range(int(slider.get_attribute("max") or 0) + 1):
            image = self.page.locator("img.gated").first
            assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
            seen.append(
                (
                    self.page.locator("output.gate").first.inner_text(),
                    str(slider.get_attribute("aria-valuetext")),
                    str(image.get_attribute("src")),
                )
            )
            slider.press("ArrowRight")
        return seen


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    page = browser.new_page()

    def call(text: str) -> Visit:
        (path := tmp_path / "report.html").write_text(text, encoding="utf-8")
        return Visit(page, path)

    yield call
    page.close()


def fits_a_phone(page: Page) -> bool:
    page.set_viewport_size({"width": 360, "height": 740})
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.fixture
def bench_report(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[BenchResult, str]:
    monkeypatch.setattr(compare_module, "measure_peak", lambda *_: 12345678)
    pipeline = fake_pipeline(tiny_bundle, monkeypatch, FakeBackend(Clock()))
    plan = Plan(8, (2, 5), None, batch=1, repeats=3, warmup=1, seed=0)
    comparison = compare([Setup("tiny", pipeline, (PROMPT, "b"))], plan, lambda *_: None)
    return comparison.result, bench_page(comparison)


@pytest.fixture
def probe_report(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ProbeResult, str]:
    pipeline = fake_pipeline(tiny_bundle, monkeypatch, FakeBackend(Clock()))
    probe = Probe(
        pipeline, (PROMPT, "b"), 8, "ddim", 0, lambda *_: None, 0, "generate --gate-step {}".format
    )
    result = probe.run()
    rng = np.random.default_rng(0)
    pictures = {
        gate: [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2)]
        for gate in probe.pictures
    }
    return result, probe_page(result, pictures)


def test_bench_page(visit: Any, bench_report: tuple[BenchResult, str]) -> None:
    result, text = bench_report
    page = visit(text)
    assert BenchResult.model_validate_json(page.result()) == result
    assert page.cells() == [[list(cells) for cells in table.rows] for table in tables(result)]
    seen = page.slide()
    assert [(shown, spoken) for shown, spoken, _ in seen] == [
        ("2", "gate step 2"), ("5", "gate step 5"),
    ]  # fmt: skip
    assert seen[0][2] != seen[1][2]
    assert page.page.locator("svg[role=img]").count() == 2
    assert page.page.locator("figcaption").first.inner_text().startswith(PROMPT)
    assert fits_a_phone(page.page)
    assert page.complaints == []
    assert len(text) < 300_000


def test_probe_page(visit: Any, probe_report: tuple[ProbeResult, str]) -> None:
    result, text = probe_report
    page = visit(text)
    assert ProbeResult.model_validate_json(page.result()) == result
    assert page.cells() == [[list(cells) for cells in table.rows] for table in probe_tables(result)]
    assert page.page.inner_text("#suggested") == str(result.suggested_gate_step) == "1"
    assert page.page.inner_text("#command") == result.command
    seen = page.slide()
    assert [int(shown) for shown, _, _ in seen] == [gate.gate_step for gate in result.gates]
    assert len({source for _, _, source in seen}) == len(seen)
    assert fits_a_phone(page.page)
    assert page.complaints == []


def test_a_page_that_loads_something_is_noticed(visit: Any) -> None:
    page = visit("<img src='http://127.0.0.1:9/x.png'><script>console.log('x')</script>")
    assert any("127.0.0.1" in complaint for complaint in page.complaints)
    assert "x" in page.complaints


def test_ids_are_unique(bench_report: tuple[BenchResult, str]) -> None:
    import re

    ids = re.findall(r'\bid="([^"]*)"', bench_report[1])
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]*)', bench_report[1]):
        assert target in ids
