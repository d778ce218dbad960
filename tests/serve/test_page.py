"""The page in a real Chromium, from a running server: pictures, the gate, keys, sizes, colours."""

from __future__ import annotations

import base64
import io
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.support.chromium import Visit, fits_a_phone
from tests.support.served_page import GATED, UNGATED, entries, generate

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROMPT = "a red circle on a blue background"
BYTES = """
async image => {
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  canvas.getContext("2d").drawImage(image, 0, 0);
  const bytes = new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer());
  return btoa(String.fromCharCode(...bytes));
}
"""


@pytest.fixture
def visit(page: Page, server: Any) -> Visit:
    found = Visit(page, f"{server.url}/")
    page.wait_for_selector("#generate:enabled")
    page.fill("#prompt", PROMPT)
    page.fill("#seed", "7")
    return found


def steps(page: Page, count: int) -> None:
    page.get_by_label("Steps", exact=True).fill(str(count))


def pixels(server: Any, gate: int) -> np.ndarray:
    """Ask the server itself [H, W, 3]."""
    status, answer = server.post(
        "/v1/images/generations", prompt=PROMPT, seed=7, gate_step=gate, num_inference_steps=25
    )
    assert status == 200, answer
    return decoded(base64.b64decode(answer["data"][0]["b64_json"]))


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float64)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


def test_two_pictures_and_another_gate(visit: Visit, server: Any) -> None:
    page = visit.page
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    entries(page, 1)
    shown = [page.locator(f"{pane} img") for pane in (UNGATED, GATED)]
    sources = [image.get_attribute("src") for image in shown]
    assert page.inner_text("#gate-value") == "10 of 25"
    assert page.locator("figcaption").all_inner_texts() == ["No gate", "Gate at step 10"]
    # The server's own answers; batches of other sizes may round otherwise.
    for image, gate in zip(shown, (25, 10), strict=True):
        found = decoded(base64.b64decode(image.evaluate(BYTES)))
        assert np.abs(found - pixels(server, gate)).max() <= 2
    assert psnr(pixels(server, 25), pixels(server, 10)) < 50  # they can be told apart
    assert page.locator(f"{GATED} .steps i.gated.done").count() == 15
    assert page.locator(f"{UNGATED} .steps i.gated").count() == 0

    page.focus("#gate")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    entries(page, 2)
    assert page.inner_text("#gate-value") == "8 of 25"
    assert shown[0].get_attribute("src") == sources[0]
    assert shown[1].get_attribute("src") != sources[1]
    one, other = (decoded(base64.b64decode(image.evaluate(BYTES))) for image in shown)
    assert np.abs(other - pixels(server, 8)).max() <= 2
    assert page.locator(f"{GATED} .steps i.gated.done").count() == 17
    said = re.fullmatch(
        r"(\d\.\d\d) times as fast as without a gate, PSNR (\d+\.\d) dB(; engine calls .*)?",
        page.inner_text("#verdict"),
    )
    assert said is not None
    assert float(said[2]) == pytest.approx(psnr(one, other), abs=0.051)
    # Twice the same: both are made again.
    generate(page, 3)
    assert shown[0].get_attribute("src") != sources[0]
    assert visit.complaints == []


def test_previews_come_on_the_way(visit: Visit) -> None:
    page = visit.page
    seen: list[str] = page.evaluate(
        """() => {
          const seen = window.seen = [];
          const image = document.querySelector(".pane img");
          const note = () => seen.push(image.alt);
          new MutationObserver(note).observe(image, { attributes: true, attributeFilter: ["src"] });
          return seen;
        }"""
    )
    assert seen == []
    steps(page, 10)
    generate(page, 1)
    seen = page.evaluate("window.seen")
    assert len(seen) >= 4
    progress = page.locator(f"{UNGATED} [role=progressbar]")
    assert progress.get_attribute("aria-valuenow") == progress.get_attribute("aria-valuemax")
    assert visit.complaints == []


def test_a_download_is_the_file_as_it_came(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    steps(page, 5)
    generate(page, 1)
    with page.expect_download() as waiting:
        page.click(f"{GATED} .download")
    download = waiting.value
    name = "shapes-a-red-circle-on-a-blue-background-seed7-gate2.png"
    assert download.suggested_filename == name
    download.save_as(tmp_path / name)
    texts = Image.open(tmp_path / name).info
    assert texts["parameters"].startswith(PROMPT)
    assert "Seed: 7" in texts["parameters"]
    assert "Gate step: 2" in texts["parameters"]


def test_a_thumbnail_brings_its_settings_back(visit: Visit) -> None:
    page = visit.page
    steps(page, 5)
    generate(page, 1)
    first = page.get_attribute(f"{UNGATED} img", "src")
    page.fill("#prompt", "a green square on a white background")
    page.fill("#seed", "8")
    steps(page, 3)
    usual = page.get_by_label("Sampler").input_value()
    page.get_by_label("Sampler").select_option("euler-a")
    page.keyboard.press("Control+Enter")
    entries(page, 2)
    assert page.get_attribute(f"{UNGATED} img", "src") != first
    page.locator("#history-list button").last.press("Enter")
    assert page.input_value("#prompt") == PROMPT
    assert page.input_value("#seed") == "7"
    assert page.get_by_label("Steps", exact=True).input_value() == "5"
    assert page.get_by_label("Sampler").input_value() == usual
    assert page.inner_text("#gate-value") == "2 of 5"
    assert page.get_attribute(f"{UNGATED} img", "src") == first
    assert visit.complaints == []


def test_escape_stops_the_server_too(
    visit: Visit, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.http_server import wait_until

    page = visit.page
    batcher = next(iter(server.pool.models.values())).batcher
    stats, step = batcher.stats, batcher._runner.run

    def slow(*arguments: Any) -> float:
        time.sleep(0.05)  # so that a key is pressed before a hundred of them are over
        return float(step(*arguments))

    monkeypatch.setattr(batcher._runner, "run", slow)
    before = stats().outcomes.get("cancelled", 0)
    steps(page, 100)
    page.click("#generate")
    page.wait_for_selector(f"{UNGATED} .steps i.done")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop", state="hidden")
    assert page.inner_text(f"{UNGATED} .times").startswith("stopped at step ")
    wait_until(lambda: stats().outcomes.get("cancelled", 0) == before + 1)
    wait_until(lambda: stats().in_flight == 0)
    assert page.locator("#error").is_hidden()
    assert visit.complaints == []


def test_what_the_server_refuses_is_shown_as_it_says(visit: Visit, server: Any) -> None:
    page = visit.page
    page.get_by_label("Guidance", exact=True).fill("7")
    steps(page, 0)
    page.click("#generate")
    page.wait_for_selector("#error:visible")
    status, answer = server.post("/v1/images/generations", prompt="x", num_inference_steps=0)
    assert status == 400
    assert page.inner_text("#error") == answer["error"]["message"]
    # It goes when something is made again.
    steps(page, 5)
    generate(page, 1)
    assert page.locator("#error").is_hidden()


def test_a_key_is_asked_for(page: Page, shapes_bundle: Path) -> None:
    from tests.support.http_server import HttpServer
    from tgate_export.serve.options import ServeOptions

    options = ServeOptions(api_keys=frozenset({"open"}))
    with HttpServer({"shapes": shapes_bundle}, options) as server:
        page.goto(f"{server.url}/")
        page.wait_for_selector("#key:visible")
        assert page.evaluate("document.activeElement.id") == "key-value"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key:visible")
        page.fill("#key-value", "open")
        page.keyboard.press("Enter")
        page.wait_for_selector("#generate:enabled")
        assert page.locator("#key").is_hidden()
        page.fill("#prompt", PROMPT)
        steps(page, 2)
        page.keyboard.press("Control+Enter")
        entries(page, 1)
        assert "open" not in (page.locator("#curl").text_content() or "")
        page.reload()
        page.wait_for_selector("#generate:enabled")  # this tab has it


def test_nothing_reaches_outside(visit: Visit) -> None:
    page = visit.page
    widths = (360, 600, 768, 1280)
    assert [fits_a_phone(page, width) for width in widths] == [True] * 4
    steps(page, 4)
    generate(page, 1)
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    for width in widths:
        assert fits_a_phone(page, width), width
        boxes = [page.locator(f"{pane} .frame").bounding_box() for pane in (UNGATED, GATED)]
        assert all(box is not None and box["width"] >= 0.4 * min(width, 640) for box in boxes)
    # A picture of 64 pixels is enlarged without smoothing.
    style = "image => getComputedStyle(image).imageRendering"
    assert page.locator(f"{GATED} img").evaluate(style) == "pixelated"


def test_contrasts_in_both_schemes(visit: Visit) -> None:
    page = visit.page
    steps(page, 0)
    page.click("#generate")
    page.wait_for_selector("#error:visible")
    steps(page, 5)
    generate(page, 1)
    for hidden in ("#error", "#key", "#stop", "#note", "#start"):
        page.locator(hidden).evaluate("each => { each.hidden = false; }")
    page.evaluate("for (const id of ['error', 'note', 'key-message']) "
                  "document.getElementById(id).textContent = 'said';")  # fmt: skip
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert visit.poor_contrasts() == []
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    page.evaluate("document.body.style.color = '#777'; document.body.style.background = '#555';")
    assert visit.poor_contrasts() != []


def test_everything_can_be_reached_and_seen_by_keyboard(visit: Visit) -> None:
    page = visit.page
    steps(page, 4)
    generate(page, 1)
    page.focus("#prompt")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.id || document.activeElement.className, "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        if name in ("", "body"):
            break
        assert outline != "none", name
        reached.append(name)
    wanted = ["negative", "generate", "download", "swap", "gate", "compare", "seed", "dice"]
    assert [name for name in reached if name in wanted] == [
        "negative", "generate", "download", "swap", "download", "gate", "compare", "seed", "dice",
    ]  # fmt: skip
    # The other picture is seen while the button is held.
    own = page.get_attribute(f"{GATED} img", "src")
    page.focus(f"{GATED} .swap")
    page.keyboard.down(" ")
    held = page.get_attribute(f"{GATED} img", "src")
    assert held == page.get_attribute(f"{UNGATED} img", "src") != own
    page.keyboard.up(" ")
    assert page.get_attribute(f"{GATED} img", "src") == own


def test_every_control_has_a_name(visit: Visit) -> None:
    page = visit.page
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button, a, pre")].filter(
          each => each.getClientRects().length && !each.labels?.length && !each.ariaLabel &&
            !each.getAttribute("aria-labelledby") && !each.textContent.trim()
        ).map(each => each.outerHTML)"""
    )
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    assert page.get_attribute("#verdict", "role") == "status"


def test_a_strict_policy_holds(visit: Visit, server: Any) -> None:
    _, headers, _ = server.send("/")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' data: blob:")
    assert "unsafe" not in policy
    assert visit.complaints == []
    visit.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), "
        "{ textContent: 'window.ran = 1' }))"
    )
    assert visit.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_a_page_that_asks_elsewhere_is_noticed(visit: Visit) -> None:
    visit.page.evaluate("fetch('http://127.0.0.1:9/x').catch(() => {})")
    visit.page.wait_for_timeout(50)
    assert visit.complaints != []


def test_a_picture_to_begin_with(page: Page, image_bundle: Path, tmp_path: Path) -> None:
    from tests.support.http_server import HttpServer

    pytest.importorskip("openai")
    with HttpServer({"tiny": image_bundle}) as server:
        page.goto(f"{server.url}/")
        page.wait_for_selector("#generate:enabled")
        page.fill("#prompt", PROMPT)
        steps(page, 6)
        size = server.pool.find(None).manifest.size.height.opt
        start = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
        Image.fromarray(start).save(tmp_path / "start.png")
        page.set_input_files("#start-file", tmp_path / "start.png")
        page.get_by_label("Strength").fill("0.7")
        generate(page, 1)
        shown = decoded(base64.b64decode(page.locator(f"{GATED} img").evaluate(BYTES)))
        # As OpenAI's client has it, by what the page says.
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            exec(page.locator("#python").text_content() or "", {})
    expected = decoded((tmp_path / "picture.png").read_bytes())
    assert np.abs(shown - expected).max() <= 2
    assert expected.std() > 0
    assert "Denoising strength: 0.7" in Image.open(tmp_path / "picture.png").info["parameters"]
