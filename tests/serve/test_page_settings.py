"""The page in a real Chromium, with answers that a test chooses: what it shows and asks for."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.support.chromium import Visit
from tests.support.served_page import GATED, entries, generate
from tgate_export.parameters import table_entry

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

serve = pytest.importorskip("tgate_export.serve.app", reason="the extra serve is not installed")

ADDRESS = "http://page.test/"
HOSTILE = '<img src="http://elsewhere.test/x.png" onerror="console.log(1)">'
USUAL = {
    "num_inference_steps": {"default": 20},
    "gate_step": {"default": 8},
    "scheduler": {"default": "euler"},
}
SECONDS = {"encode": 0.01, "full": 0.0075, "gated": 0.0025, "decode": 0.01}


def model(name: str, extra: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    side = {"min": 64, "opt": 64, "max": 64}
    tables = USUAL | (extra or {})
    about = {
        "family": "stable-diffusion", "loaded": True, "image_to_image": False, "video": False,
        "negative_prompt": False, "size": {"width": side, "height": side, "multiple": 8},
        "schedulers": {"ddim": 1000, "euler": 40},
        "parameters": {
            name: table_entry(name, **given).model_dump(mode="json")
            for name, given in tables.items()
        },
    }  # fmt: skip
    return {"id": name, "object": "model", "tgate": about | changes}


GUIDED = {
    "guidance_scale": {"default": 7.5}, "cache_blend": {}, "guidance_carry": {},
    "sp_interval": {"default": 1}, "fi_interval": {"default": 1},
}  # fmt: skip
WIDE = {
    "width": {"min": 64, "opt": 128, "max": 256},
    "height": {"min": 64, "opt": 192, "max": 256},
    "multiple": 8,
}


class Api:
    """A server that is not there: the page's own files, and made-up pictures."""

    def __init__(self, page: Page, *models: dict[str, Any]) -> None:
        self.models = models
        self.sent: list[dict[str, Any]] = []
        self.forms: list[bytes] = []
        self.refusal: tuple[int, str] | None = None
        page.route(f"{ADDRESS}**", self._answer)

    def _answer(self, route: Route) -> None:
        path = route.request.url.removeprefix(ADDRESS)
        if path == "v1/models":
            route.fulfill(json={"object": "list", "data": self.models})
        elif path.startswith("v1/") and self.refusal:
            status, message = self.refusal
            route.fulfill(status=status, json={"error": {"message": message}})
        elif path.startswith("v1/"):
            self._generate(route, path)
        else:
            route.fulfill(path=serve.PAGE / (path.removeprefix("page/") or "index.html"))

    def _generate(self, route: Route, path: str) -> None:
        if path == "v1/images/edits":
            self.forms.append(route.request.post_data_buffer or b"")
            asked = {"size": "64x64", "seed": 1, "gate_step": 8, "num_inference_steps": 20}
        else:
            asked = route.request.post_data_json
            self.sent.append(asked)
        route.fulfill(content_type="text/event-stream", body=answer(asked))


def answer(asked: dict[str, Any]) -> str:
    steps, gate = asked["num_inference_steps"], asked["gate_step"]
    phases = ["full" if step < gate else "gated" for step in range(steps)]
    stages: dict[str, Any] = {
        stage: {"calls": calls, "seconds": SECONDS[stage] * calls, "mean_batch": 1.0}
        for stage in ("encode", "full", "gated", "decode")
        if (calls := phases.count(stage) if stage in ("full", "gated") else 1)
    }
    if gate < steps:  # the texts of the picture without a gate are remembered
        stages["encode"]["seconds"] = 0.0
    width, height = map(int, asked["size"].split("x"))
    picture = io.BytesIO()
    Image.new("RGB", (width, height), (gate, steps, 0)).save(picture, "PNG")
    events: list[dict[str, Any]] = [
        {"type": "image_generation.progress", "image": 0, "step": step, "evaluations": steps,
         "phase": phase, "batch": 1}
        for step, phase in enumerate(phases)
    ]  # fmt: skip
    events.append({
        "type": "image_generation.completed", "image": 0, "seed": asked["seed"],
        "b64_json": base64.b64encode(picture.getvalue()).decode(),
        "tgate": {"timings": {"stages": stages}, "warnings": []},
    })  # fmt: skip
    return "".join(f"event: {each['type']}\r\ndata: {json.dumps(each)}\r\n\r\n" for each in events)


def visit(page: Page, *models: dict[str, Any]) -> tuple[Api, Visit]:
    api = Api(page, *models)
    found = Visit(page, ADDRESS)
    page.wait_for_selector("#main-fields .field")
    return api, found


def test_the_speed_up_counts_texts_for_both(page: Page) -> None:
    _, found = visit(page, model("x"))
    page.fill("#prompt", "a fox")
    generate(page, 1)
    # 10 + 20 * 7.5 + 10 ms without a gate, 10 + 8 * 7.5 + 12 * 2.5 + 10 with it: 170 / 110
    assert page.inner_text("#verdict").startswith("1.55 times as fast as without a gate")

    times = page.locator(".times").all_inner_texts()
    assert [text.split(" · ")[0] for text in times] == ["engines 170 ms", "engines 100 ms"]
    # Each cell is as wide as its step took, and the strips as long as their pictures.
    page.emulate_media(reduced_motion="reduce")
    width = "all => all.map(each => each.getBoundingClientRect().width)"
    whole, strip = page.locator(".steps").evaluate_all(width)
    assert strip / whole == pytest.approx(1.0 / 1.7, rel=1e-3)
    cells = page.locator(f"{GATED} .steps i").evaluate_all(width)
    left = strip - 21  # pixels between them
    shares = [0, *[0.075] * 8, *[0.025] * 12, 0.1]  # of 100 ms
    assert cells == pytest.approx([share * left for share in shares], abs=0.1)
    assert found.complaints == []


def test_what_only_the_gate_reads_leaves_the_other_picture(page: Page) -> None:
    api, found = visit(page, model("x", GUIDED))
    page.fill("#prompt", "a fox")
    page.fill("#seed", "5")
    generate(page, 1)
    base = {"model": "x", "prompt": "a fox", "seed": 5, "size": "64x64"}
    base |= {"num_inference_steps": 20, "scheduler": "euler", "guidance_scale": 7.5}
    asked = [{key: each[key] for key in each if key in (*base, "gate_step")} for each in api.sent]
    assert asked == [base | {"gate_step": 20}, base | {"gate_step": 8}]
    page.get_by_label("Blend").fill("1")
    page.get_by_label("Blend").press("Tab")
    entries(page, 2)
    assert [each.get("cache_blend") for each in api.sent] == [None, None, 1]
    page.click("#more summary")
    page.get_by_label("Fi interval").fill("2")
    page.get_by_label("Fi interval").press("Tab")
    entries(page, 3)
    assert [each.get("fi_interval") for each in api.sent] == [None, None, None, 2]
    assert api.sent[3]["gate_step"] == 8
    # Anything else needs both, and waits for the button.
    page.get_by_label("Sp interval").fill("2")
    page.get_by_label("Guidance").fill("3")
    page.focus("#gate")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(600)
    assert len(api.sent) == 4
    generate(page, 4)
    last = [(each["guidance_scale"], each["gate_step"]) for each in api.sent[4:]]
    assert last == [(3, 20), (3, 9)]
    assert found.complaints == []


def test_the_gate_follows_the_steps(page: Page) -> None:
    api, _ = visit(page, model("x"))
    assert page.inner_text("#gate-value") == "8 of 20"
    page.get_by_label("Steps", exact=True).fill("40")
    assert page.inner_text("#gate-value") == "16 of 40"
    page.focus("#gate")
    page.keyboard.press("End")
    assert page.inner_text("#gate-value") == "no gate in 40 steps"
    page.fill("#prompt", "a fox")
    generate(page, 1)
    assert [each["gate_step"] for each in api.sent] == [40]  # one picture is both
    assert page.inner_text("#verdict").endswith("the same picture")


def test_one_picture_alone(page: Page) -> None:
    api, _ = visit(page, model("x"))
    page.uncheck("#compare")
    assert page.locator(".pane:visible").count() == 1
    page.fill("#prompt", "a fox")
    generate(page, 1)
    assert [each["gate_step"] for each in api.sent] == [8]
    page.check("#compare")
    generate(page, 2)
    assert [each["gate_step"] for each in api.sent] == [8, 20]


def test_a_free_seed_is_a_new_one_each_time(page: Page) -> None:
    api, _ = visit(page, model("x"))
    first = page.input_value("#seed")
    page.click("#dice")
    assert page.input_value("#seed") not in ("", first)
    page.fill("#seed", "")
    page.fill("#prompt", "a fox")
    generate(page, 1)
    page.focus("#gate")
    page.keyboard.press("ArrowLeft")
    entries(page, 2)
    generate(page, 3)
    seeds = [each["seed"] for each in api.sent]
    assert seeds[:3] == [seeds[0]] * 3
    assert seeds[3:] == [seeds[3]] * 2
    assert seeds[3] != seeds[0]


@pytest.mark.parametrize("seed", [2**53 + 1, 2**64 - 1])
def test_every_digit_of_a_seed_counts(page: Page, seed: int) -> None:
    """Numbers of JavaScript have 53 bits."""
    api, found = visit(page, model("x"))
    page.fill("#prompt", "a fox")
    page.fill("#seed", str(seed))
    generate(page, 1)
    page.focus("#gate")
    page.keyboard.press("ArrowRight")  # the other picture is of the same seed, and stays
    entries(page, 2)
    assert [each["seed"] for each in api.sent] == [seed] * 3
    assert f'"seed":{seed},' in str(page.locator("#curl").text_content())
    assert f'"seed": {seed},' in str(page.locator("#python").text_content())
    names = page.locator("a[download]").evaluate_all("all => all.map(each => each.download)")
    assert all(f"seed{seed}" in name for name in names)
    page.fill("#seed", "1")
    button = page.locator("#history-list button").first
    assert f"seed {seed}:" in str(button.get_attribute("aria-label"))
    button.click()
    assert page.input_value("#seed") == str(seed)
    # The next one is another.
    page.fill("#seed", str(seed - 1))
    generate(page, 3)
    assert api.sent[-1]["seed"] == seed - 1
    assert found.complaints == []


def test_models_have_their_own_settings(page: Page) -> None:
    plain = model("plain")
    rich = model(
        "rich", {**GUIDED, "original_size": {}, "crops_coords_top_left": {}, "clip_skip": {}},
        size=WIDE, negative_prompt=True,
    )  # fmt: skip
    api, found = visit(page, plain, rich)
    for name in ("#negative", "#size", "#more", "#start"):
        assert page.locator(name).is_hidden(), name
    assert page.get_by_label("Guidance").count() == 0
    page.select_option("#model", "rich")
    page.fill("#prompt", "a fox")
    page.fill("#negative", "a dog")
    page.fill("#width", "72")
    page.click("#more summary")
    title = page.get_by_label("clip skip").locator("..").get_attribute("title")
    assert title == rich["tgate"]["parameters"]["clip_skip"]["help"]
    page.get_by_label("height", exact=True).fill("99")
    generate_fails(page, "Original size: two numbers, height and width")
    page.get_by_label("height", exact=True).fill("")
    page.get_by_label("left", exact=True).fill("4")  # of the two the other one is left as it is
    generate(page, 1)
    sent = api.sent[0]
    assert (sent["size"], sent["negative_prompt"]) == ("72x192", "a dog")
    assert (sent["crops_coords_top_left"], sent["guidance_scale"]) == ([0, 4], 7.5)
    assert "original_size" not in sent
    # A thumbnail brings back all of it, the model too.
    page.select_option("#model", "plain")
    page.fill("#prompt", "a dog")
    page.click("#history-list button")
    assert page.input_value("#model") == "rich"
    assert page.input_value("#prompt") == "a fox"
    assert page.input_value("#width") == "72"
    assert page.get_by_label("left", exact=True).input_value() == "4"
    page.focus("#gate")
    page.keyboard.press("ArrowRight")
    entries(page, 2)
    last = api.sent[-1]
    assert last == api.sent[1] | {"gate_step": 9}
    assert len(api.sent) == 3
    assert found.complaints == []


def generate_fails(page: Page, message: str) -> None:
    page.click("#generate")
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#error") == message


def test_an_image_to_begin_with(page: Page) -> None:
    extra = {"image": {}, "strength": {"default": 0.5}}
    api, found = visit(page, model("x", extra, image_to_image=True))
    page.fill("#prompt", "a fox")
    picture = io.BytesIO()
    Image.new("RGB", (300, 100), "red").save(picture, "PNG")
    page.set_input_files(
        "#start-file", {"name": "a.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    )
    assert page.inner_text("#gate-value") == "4 of 10"  # int(20 * 0.5) steps run
    generate(page, 1)
    assert len(api.forms) == 2
    for form, gate in zip(api.forms, (b"10", b"4"), strict=True):
        assert b'name="gate_step"\r\n\r\n' + gate + b"\r\n" in form
        assert b'name="strength"\r\n\r\n0.5\r\n' in form
        assert b'name="image"; filename="start.png"' in form
    assert "client.images.edit(" in page.locator("#python").text_content()
    page.click("#start-remove")
    assert page.inner_text("#gate-value") == "8 of 20"
    generate(page, 2)
    assert "strength" not in api.sent[0]
    assert found.complaints == []


def test_history_is_bounded(page: Page) -> None:
    _, found = visit(page, model("x"))
    page.fill("#prompt", "a fox")
    page.uncheck("#compare")
    for count in range(1, 25):
        generate(page, count)
    page.click("#generate")
    page.wait_for_selector(".busy", state="detached")
    assert page.locator("#history-list li").count() == 24
    assert page.locator(".pane:visible img").evaluate("i => i.decode().then(() => i.naturalWidth)")
    assert found.complaints == []


def test_texts_are_texts(page: Page) -> None:
    api, found = visit(page, model(HOSTILE, family=HOSTILE), model("y"))
    page.fill("#prompt", HOSTILE)
    generate(page, 1)
    assert page.inner_text("#model-facts").startswith(HOSTILE)
    assert page.get_attribute("#history-list button", "title") == HOSTILE
    api.refusal = (400, HOSTILE)
    generate_fails(page, HOSTILE)
    assert page.locator("img[onerror]").count() == 0
    assert found.complaints == ["Failed to load resource: the server responded with a status of "
                                "400 (Bad Request)"]  # fmt: skip


@pytest.mark.parametrize("text", ["a 'fox' said \"$HOME\" \\ `ls`", "eine Füchsin\nund {ein}"])
def test_requests_to_copy(page: Page, text: str) -> None:
    import ast
    import shlex

    api, _ = visit(page, model("x", {"guidance_scale": {"default": 7.5}}))
    page.fill("#prompt", text)
    generate(page, 1)
    extra = ("stream", "progress", "partial_images", "output_format")
    sent = {name: value for name, value in api.sent[-1].items() if name not in extra}
    command = shlex.split(page.locator("#curl").text_content())
    assert json.loads(command[command.index("-d") + 1]) == sent
    calls = [
        node for node in ast.walk(ast.parse(page.locator("#python").text_content()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "client.images.generate"
    ]  # fmt: skip
    given = {each.arg: ast.literal_eval(each.value) for each in calls[0].keywords}
    assert given.pop("extra_body") | given == sent
