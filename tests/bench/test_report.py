"""The HTML reports in a real Chromium: what they show is what the JSON says, and nothing loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.bench import Clock, FakeBackend, fake_pipeline
from tests.support.chromium import Visit, chromium, fits_a_phone
from tests.support.rows import baseline, gated, plain
from tgate_export.bench import compare as compare_module
from tgate_export.bench.answer import answer
from tgate_export.bench.compare import compare
from tgate_export.bench.measure import Plan, Setup
from tgate_export.bench.probe import Probe
from tgate_export.bench.report.bench import bench_page
from tgate_export.bench.report.probe import probe_page
from tgate_export.bench.result import BenchResult, Number, ProbeResult
from tgate_export.bench.rows import RowSpec
from tgate_export.bench.tables import probe_tables, tables

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A prompt that ends scripts and tables, were it not escaped.
PROMPT = '</script><b>a "fox"</b> & [100%] ${x}'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    page = browser.new_page()

    def call(text: str) -> Visit:
        (path := tmp_path / "report.html").write_text(text, encoding="utf-8")
        return Visit(page, path)

    yield call
    page.close()


def command(pipeline: object, prompt: str, scheduler: str | None, row: RowSpec) -> str:
    return f"generate {row.label}"


@pytest.fixture
def bench_report(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[BenchResult, str]:
    monkeypatch.setattr(compare_module, "measure_peak", lambda *_: 12345678)
    pipeline = fake_pipeline(tiny_bundle, monkeypatch, FakeBackend(Clock()))
    plan = Plan(8, (2, 5), None, batch=1, repeats=3, warmup=1, seed=0)
    comparison = compare([Setup("tiny", pipeline, (PROMPT, "b"))], plan, lambda *_: None, command)
    return comparison.result, bench_page(comparison)


@pytest.fixture
def two_targets(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[BenchResult, str]:
    monkeypatch.setattr(compare_module, "measure_peak", lambda *_: None)
    clock = Clock()
    setups = [
        Setup(name, fake_pipeline(tiny_bundle, monkeypatch, FakeBackend(clock)), ("a",))
        for name in ("one bundle (openvino)", "another (onnxruntime:cuda)")
    ]
    plan = Plan(8, (2, 5), None, batch=1, repeats=2, warmup=1, seed=0)
    comparison = compare(setups, plan, lambda *_: None, command)
    return comparison.result, bench_page(comparison)


@pytest.fixture(params=["bench", "probe", "probe before the first gate"])
def interrupted(
    request: pytest.FixtureRequest, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    backend = FakeBackend(Clock())
    pipeline = fake_pipeline(tiny_bundle, monkeypatch, backend)
    calls = {"bench": 9, "probe": 3, "probe before the first gate": 1}[request.param]

    def interrupt(launch: Any, _memory: Any) -> None:
        if launch.graph == "sampler" and backend.launched.count("vae_decoder") == calls:
            raise KeyboardInterrupt

    backend.ran = interrupt
    if request.param == "bench":
        plan = Plan(8, (2, 5), None, batch=1, repeats=3, warmup=1, seed=0)
        return bench_page(compare([Setup("x", pipeline, ("a",))], plan, lambda *_: None))
    probe = Probe(pipeline, ("a",), 8, "ddim", 0, lambda *_: None)
    return probe_page(probe.run(), probe.pictures)


@pytest.fixture
def probe_report(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ProbeResult, str]:
    pipeline = fake_pipeline(tiny_bundle, monkeypatch, FakeBackend(Clock()))
    probe = Probe(
        pipeline, (PROMPT, "b"), 8, "ddim", 0, lambda *_: None, 0,
        command,
    )  # fmt: skip
    result = probe.run()
    rng = np.random.default_rng(0)
    pictures = {
        row: [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2)]
        for row in probe.pictures
    }
    return result, probe_page(result, pictures)


@pytest.fixture
def crowded(probe_report: tuple[ProbeResult, str]) -> str:
    """The page of a probe whose many rows are all but the same, with settings of other methods."""
    others: dict[str, Number] = {"cache_blend": 1.0, "guidance_carry": 0.5}
    seconds = [0.6 + 0.02 * index for index in range(8)]
    rows = [
        baseline(judged=True),
        *(gated(gate, s, lost=gate % 2) for gate, s in enumerate(seconds, 3)),
        *(gated(gate, s, lost=0, parameters=others) for gate, s in enumerate(seconds[:3], 3)),
        plain(14, 0.61, lost=0), plain(15, 0.64, lost=0), plain(16, 0.67, lost=40, keeps=False),
    ]  # fmt: skip
    found = answer("x", rows, complete=True)
    pictures = {row.id: [np.zeros((8, 8, 3), np.uint8)] * 2 for row in rows}
    found = found.model_copy(update={"command": "generate 14 plain steps"})
    update = {"rows": rows, "answer": found, "gate_command": "generate gate 4"}
    result = probe_report[0].model_copy(update=update)
    return probe_page(result, pictures)


def test_bench_page(visit: Any, bench_report: tuple[BenchResult, str]) -> None:
    result, text = bench_report
    page = visit(text)
    assert BenchResult.model_validate_json(page.result()) == result
    assert page.cells() == [[list(cells) for cells in table.rows] for table in tables(result)]
    labels = [row.label for row in result.rows[1:]]
    seen = page.choose()
    assert [fact.partition(":")[0] for _, fact, _ in seen] == labels
    assert [name for name, _, _ in seen] == [
        "gate 2", "gate 2, blend 1, carry 0.25", "gate 5", "gate 5, blend 1, carry 0.25", "6 steps",
        "4 steps",
    ]  # fmt: skip
    assert len({source for _, _, source in seen}) == len(seen)
    assert page.page.locator("figcaption").first.inner_text() == PROMPT
    assert page.complaints == []
    assert len(text) < 300_000


def test_probe_page(visit: Any, probe_report: tuple[ProbeResult, str]) -> None:
    result, text = probe_report
    page = visit(text)
    assert ProbeResult.model_validate_json(page.result()) == result
    assert page.cells() == [[list(cells) for cells in table.rows] for table in probe_tables(result)]
    assert page.page.locator(".command code").all_inner_texts() == ["generate gate 1 of 8"]
    # The gate is what to use.
    assert result.answer.command == result.gate_command == "generate gate 1 of 8"
    assert page.page.locator(".command").count() == 1
    seen = page.choose()
    assert [fact.partition(":")[0] for _, fact, _ in seen] == [r.label for r in result.rows[1:]]
    assert len({source for _, _, source in seen}) == len(seen)
    assert page.complaints == []


@pytest.mark.builds
@pytest.mark.parametrize("report", ["bench_report", "probe_report"])
def test_the_sentence_is_first_then_the_frontier_then_pictures(
    visit: Any, report: str, request: pytest.FixtureRequest
) -> None:
    result, text = request.getfixturevalue(report)
    page = visit(text).page
    answers = result.answers if isinstance(result, BenchResult) else [result.answer]
    assert page.locator("main p").first.inner_text() == answers[0].sentence
    order = [".answer", "svg.wide", "img.baseline", "table"]
    tops = [page.locator(each).first.bounding_box()["y"] for each in order]
    assert tops == sorted(tops)
    assert len(set(tops)) == len(tops)


@pytest.mark.parametrize("width", [360, 390, 768, 1200])
def test_nothing_overlaps_or_reaches_outside(visit: Any, crowded: str, width: int) -> None:
    page = visit(crowded)
    assert page.page.locator(".command code").all_inner_texts() == [
        "generate 14 plain steps",
        "generate gate 4",
    ]
    assert fits_a_phone(page.page, width)
    labels = page.page.locator("svg:visible text.label")
    assert labels.count() >= 15
    assert labels.first.evaluate("text => getComputedStyle(text).fontSize") == "12px"
    assert page.overlapping_labels() == []
    assert page.complaints == []


def test_each_target_has_an_answer_and_pictures(
    visit: Any, two_targets: tuple[BenchResult, str]
) -> None:
    result, text = two_targets
    page = visit(text)
    sentences = page.page.locator(".answer p:not(.command)").all_inner_texts()
    expected = [f"{answer.target}\n{answer.sentence}" for answer in result.answers]
    assert [sentence.replace("\n\n", "\n") for sentence in sentences] == expected
    assert page.page.locator(".chooser").count() == 2
    assert fits_a_phone(page.page)
    assert page.overlapping_labels() == []
    assert page.complaints == []


def test_interrupted(visit: Any, interrupted: str) -> None:
    page = visit(interrupted)
    assert page.page.inner_text("#incomplete") == "Interrupted: this report is incomplete."
    assert page.page.inner_text("#answer-0").startswith("Interrupted: too little was measured")
    assert page.page.locator(".command").count() == 0
    assert fits_a_phone(page.page)
    assert page.complaints == []


def test_overlaps_are_noticed(visit: Any, crowded: str) -> None:
    page = visit(crowded)
    page.page.add_style_tag(content="svg text { font-size: 30px !important }")
    assert page.overlapping_labels() != []
    page.page.set_viewport_size({"width": 390, "height": 844})
    page.page.add_style_tag(content=".scroll { overflow-x: visible !important }")
    assert not page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_matters_comes_first_on_a_phone(visit: Any, crowded: str) -> None:
    page = visit(crowded).page
    page.set_viewport_size({"width": 390, "height": 844})
    heads = page.locator("table").first.locator("thead th")
    seen = [
        heads.nth(at).inner_text()
        for at in range(heads.count())
        if (box := heads.nth(at).bounding_box()) and box["x"] + box["width"] <= 390
    ]
    assert seen == ["row", "times as fast (95 %)", "adherence"]
    # Pictures use the width: two beside each other, and nothing else.
    box = page.locator("img.baseline").first.bounding_box()
    assert box is not None
    assert box["width"] > 170


@pytest.mark.builds
@pytest.mark.parametrize("report", ["bench_report", "probe_report"])
def test_dark(visit: Any, report: str, request: pytest.FixtureRequest) -> None:
    page = visit(request.getfixturevalue(report)[1])
    page.page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    colours = {}
    for scheme in ("light", "dark"):
        page.page.emulate_media(color_scheme=scheme)
        assert page.poor_contrasts() == []
        colours[scheme] = page.page.evaluate(
            "() => [getComputedStyle(document.body).backgroundColor, "
            "...['.f0', 'svg:not(.narrow) text', '.answer'].map(name => "
            "getComputedStyle(document.querySelector(name)).fill + "
            "getComputedStyle(document.querySelector(name)).backgroundColor)]"
        )
    pairs = list(zip(colours["light"], colours["dark"], strict=True))
    assert all(light != dark for light, dark in pairs), pairs
    page.page.add_style_tag(content="main { color: #777; background: #555 }")
    assert page.poor_contrasts() != []


def test_every_point_of_a_curve_has_as_many_pictures(visit: Any, crowded: str) -> None:
    page = visit(crowded)
    rows = ProbeResult.model_validate_json(page.result()).rows
    (count,) = {row.quality.similarity.images for row in rows if row.quality}
    notes = page.page.locator(".chart p").all_inner_texts()
    assert [note.startswith(f"Each point: {count} pictures.") for note in notes[:2]] == [True, True]
    assert page.page.locator("svg.wide").first.locator(".f0, .f1, .f2").count() == len(rows)


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
