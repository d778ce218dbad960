"""What a client of A1111's API sees: webuiapi, which others wrote."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.support.http_server import HttpServer, wait_until
from tgate_export import TGatePipeline
from tgate_export.runtime.model_runner import ModelRunner
from tgate_export.serve.options import ServeOptions

webuiapi = pytest.importorskip("webuiapi")

PROMPT = "a red circle on a blue background"
RUN: dict[str, Any] = {
    "prompt": PROMPT, "seed": 11, "steps": 6, "width": 64, "height": 64, "sampler_name": "DDIM",
    "eta": 0,
}  # fmt: skip
LONG: dict[str, Any] = {**RUN, "steps": 100}


@pytest.fixture(scope="module")
def served(shapes_bundle: Path, image_bundle: Path) -> Iterator[HttpServer]:
    """A server of two models."""
    with HttpServer({"shapes": shapes_bundle, "tiny": image_bundle}) as found:
        yield found


@pytest.fixture(scope="module")
def tiny_pipeline(image_bundle: Path) -> TGatePipeline:
    return TGatePipeline.from_bundle(image_bundle, "onnxruntime:cpu")


@pytest.fixture
def client(served: HttpServer) -> Any:
    return webuiapi.WebUIApi(port=served.port)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every engine call take long enough for somebody to come between."""
    run = ModelRunner.run

    def late(self: ModelRunner, *arguments: Any) -> float:
        time.sleep(0.05)
        return run(self, *arguments)

    monkeypatch.setattr(ModelRunner, "run", late)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def close(first: Image.Image, second: Image.Image) -> bool:
    """Kernels of another batch round in another way, which is seen as one of 255 at most."""
    return first.size == second.size and int(np.abs(pixels(first) - pixels(second)).max()) <= 1


def alone(pipeline: TGatePipeline, prompt: str = PROMPT, **options: Any) -> Image.Image:
    """What the pipeline makes by itself; by default the call `RUN` of `shapes`."""
    usual = {"seed": 11, "num_inference_steps": 6, "guidance_scale": 7.0, "scheduler": "ddim"}
    (image,) = pipeline(prompt, **usual | options).images
    assert isinstance(image, Image.Image)
    return image


def refusal(status: int, content: bytes) -> str:
    """The message of an error in A1111's form."""
    error = json.loads(content)
    assert set(error) == {"error", "detail", "body", "errors"}
    assert error["detail"] == error["errors"]
    assert "\n" not in error["detail"]
    assert len(error["detail"]) < 1000
    assert status >= 400
    return str(error["detail"])


def refused(server: HttpServer, path: str, fields: dict[str, Any], status: int = 400) -> str:
    found, _, content = server.send(f"/sdapi/v1/{path}", json.dumps(fields).encode())
    assert found == status, content
    return refusal(found, content)


def test_a_picture_is_the_pipelines(client: Any, shapes_pipeline: TGatePipeline) -> None:
    found = client.txt2img(**RUN)
    expected = alone(shapes_pipeline)
    assert close(found.image, expected)
    # A field that were dropped would be seen.
    for other in (
        {"seed": 12}, {"steps": 7}, {"cfg_scale": 1}, {"prompt": "a green square"},
        {"negative_prompt": "a circle"}, {"sampler_name": "Euler"},
    ):  # fmt: skip
        assert not close(client.txt2img(**RUN | other).image, expected), other


def test_the_bundles_parameters_stand_beside(
    served: HttpServer, shapes_pipeline: TGatePipeline
) -> None:
    _, found = served.post(
        "/sdapi/v1/txt2img", **RUN, gate_step=2, cache_blend=1.0, guidance_carry=0.5, cfg_scale=7
    )
    with Image.open(io.BytesIO(base64.b64decode(found["images"][0]))) as image:
        expected = alone(shapes_pipeline, gate_step=2, cache_blend=1.0, guidance_carry=0.5)
        assert close(image, expected)
        assert not close(image, alone(shapes_pipeline, gate_step=2))
    # What is left out is the bundle's default.
    _, usual = served.post("/sdapi/v1/txt2img", prompt=PROMPT, seed=3)
    (expected,) = shapes_pipeline(PROMPT, seed=3).images
    with Image.open(io.BytesIO(base64.b64decode(usual["images"][0]))) as image:
        assert close(image, expected)
    message = refused(served, "txt2img", {**RUN, "cfg_scale": 7, "guidance_scale": 7})
    assert "cfg_scale and guidance_scale are one parameter" in message


def test_prompts_are_in_its_syntax(
    client: Any, served: HttpServer, shapes_pipeline: TGatePipeline
) -> None:
    """Unless a request says otherwise, and by no other door."""
    run = RUN | {"prompt": "a (red:1.4) circle [on] blue"}
    found = client.txt2img(**run)
    weighted = alone(shapes_pipeline, run["prompt"], prompt_syntax="a1111")
    plain = alone(shapes_pipeline, run["prompt"])
    assert close(found.image, weighted)
    assert not close(weighted, plain)
    record = json.loads(found.image.text["tgate-export"])
    assert record["parameters"]["prompt_syntax"] == "a1111"
    _, answer = served.post("/sdapi/v1/txt2img", **run, cfg_scale=7, prompt_syntax="plain")
    _, openai = served.post(
        "/v1/images/generations", prompt=run["prompt"], seed=11, steps=6, guidance_scale=7,
        scheduler="ddim", size="64x64",
    )  # fmt: skip
    for text in (answer["images"][0], openai["data"][0]["b64_json"]):
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert close(image, plain)
    message = refused(served, "txt2img", run | {"negative_prompt": "a (circle"})
    assert message.startswith("negative_prompt: '(' at character 3 is not closed")
    assert "AND at character 3" in refused(served, "txt2img", run | {"prompt": "a AND b"})


@pytest.mark.parametrize(
    ("sampler", "type_", "scheduler"),
    [
        ("Euler a", "automatic", "euler-a"),
        ("Euler", "automatic", "euler"),
        ("Euler", "karras", "euler-karras"),
        ("euler karras", "Automatic", "euler-karras"),
        ("DPM++ 2M", "Karras", "dpm++2m-karras"),
        ("DPM++ 2M", "Automatic", "dpm++2m-karras"),
        ("DPM++ 2M", "Uniform", "dpm++2m"),
        ("DPM++ 2M Karras", "automatic", "dpm++2m-karras"),
        ("DDIM", "Karras", "ddim"),
        ("PLMS", "automatic", "pndm"),
        ("dpm++3m", "automatic", "dpm++3m"),
    ],
)
def test_samplers_have_two_names(
    client: Any, shapes_pipeline: TGatePipeline, sampler: str, type_: str, scheduler: str
) -> None:
    call = {"sampler_name": sampler, "scheduler": type_, "eta": 1.0}
    found = client.txt2img(**RUN | call).image
    assert close(found, alone(shapes_pipeline, scheduler=scheduler))
    others = {"euler-a", "euler", "euler-karras", "dpm++2m", "dpm++2m-karras"} - {scheduler}
    assert not any(close(found, alone(shapes_pipeline, scheduler=other)) for other in others)


def test_an_unknown_sampler_is_answered_with_those_there_are(served: HttpServer) -> None:
    message = refused(served, "txt2img", {**RUN, "sampler_name": "Restart"})
    assert message.startswith("sampler_name: unknown sampler 'Restart': this bundle has ")
    assert "DPM++ 2M (Uniform, Karras)" in message
    message = refused(served, "txt2img", {**RUN, "sampler_name": "LCM", "scheduler": "Beta"})
    assert "LCM has Automatic, Uniform, not 'Beta'" in message
    for lacking in ("DPM++ 2M SDE Karras", "euler@timesteps=900,700,500,300,200,100"):
        message = refused(served, "txt2img", {**RUN, "sampler_name": lacking})
        assert message.startswith("sampler_name: unknown sampler ")
    message = refused(served, "txt2img", {**RUN, "sampler_name": "Euler a"})  # eta is 0
    assert "eta 0 cannot be used with Euler a" in message


def test_several_images(client: Any, shapes_pipeline: TGatePipeline) -> None:
    found = client.txt2img(**RUN, batch_size=2, n_iter=2)
    assert found.info["all_seeds"] == [11, 12, 13, 14]
    assert len(found.info["infotexts"]) == 4
    for seed, image in zip(found.info["all_seeds"], found.images, strict=True):
        assert close(image, alone(shapes_pipeline, seed=seed))


def test_the_answer_says_what_was_made(client: Any, shapes_pipeline: TGatePipeline) -> None:
    found = client.txt2img(
        **RUN | {"sampler_name": "DPM++ 2M Karras", "negative_prompt": "a, b", "seed": -1}
    )
    info = found.info
    assert {
        "prompt": PROMPT, "negative_prompt": "a, b", "width": 64, "height": 64, "steps": 6,
        "cfg_scale": 7.0, "sampler_name": "DPM++ 2M", "batch_size": 1, "clip_skip": 1,
        "sd_model_name": "shapes", "index_of_first_image": 0, "subseed_strength": 0,
    }.items() <= info.items()  # fmt: skip
    assert info["extra_generation_params"]["Schedule type"] == "Karras"
    assert info["all_prompts"] == [PROMPT]
    assert info["seed"] == info["all_seeds"][0] >= 0
    expected = alone(
        shapes_pipeline, seed=info["seed"], scheduler="dpm++2m-karras", negative_prompt="a, b"
    )
    assert close(found.image, expected)
    assert found.image.text["parameters"] == info["infotexts"][0]
    assert found.parameters["prompt"] == PROMPT
    assert found.parameters["seed"] == -1
    assert client.txt2img(**RUN | {"seed": -1}).info["seed"] != info["seed"]
    assert client.txt2img(**RUN, send_images=False).images == []


def test_an_image_is_made_anew(client: Any, tiny_pipeline: TGatePipeline) -> None:
    size = tiny_pipeline.manifest.size
    width, height = size.width.opt, size.height.opt
    random = np.random.default_rng(0)
    sent = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
    run = {
        **RUN, "width": width, "height": height, "sampler_name": "Euler",
        "override_settings": {"sd_model_checkpoint": "tiny"},
    }  # fmt: skip
    usual = {"scheduler": "euler", "image": sent, "strength": 0.6}
    found = client.img2img([sent], denoising_strength=0.6, **run)
    assert close(found.image, alone(tiny_pipeline, **usual))
    assert found.info["denoising_strength"] == 0.6
    assert found.info["sd_model_name"] == "tiny"
    assert found.parameters["init_images"] is None
    other = client.img2img([sent], denoising_strength=0.9, **run)
    assert not close(other.image, found.image)
    assert close(other.image, alone(tiny_pipeline, **usual | {"strength": 0.9}))
    # A picture of another size is made to fit, as A1111 does.
    large = Image.fromarray(random.integers(0, 256, (3 * height, 2 * width, 3), np.uint8))
    fitted = [
        large.resize((width, height), Image.Resampling.LANCZOS),
        ImageOps.fit(large, (width, height), Image.Resampling.LANCZOS),
    ]
    for mode, expected in enumerate(fitted):
        found = client.img2img([large], denoising_strength=0.6, resize_mode=mode, **run)
        assert close(found.image, alone(tiny_pipeline, **usual | {"image": expected}))
    assert not close(*fitted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "init_images must be a list of one picture"),
        ({"init_images": []}, "init_images must be a list of one picture"),
        ({"init_images": ["", ""]}, "init_images must be a list of one picture"),
        ({"init_images": [3]}, "init_images must be a list of one picture"),
        ({"init_images": "x"}, "init_images must be a list"),
        ({"init_images": ["!"]}, "init_images is not base64"),
        ({"init_images": ["AAAA"]}, "image init_images cannot be read"),
        ({"init_images": ["http://127.0.0.1/a.png"]}, "init_images is not base64"),
        ({"width": 10**9}, "width 1000000000 does not fit"),
        ({"height": -8}, "height -8 does not fit"),
        ({"resize_mode": 2}, "resize_mode must be 0 (resize) or 1"),
        ({"mask": "AAAA"}, "mask cannot be used here"),
        ({"denoising_strength": 0}, "denoising_strength: strength must be above 0"),
        ({"denoising_strength": 2}, "denoising_strength: strength must be above 0"),
        ({"initial_noise_multiplier": 0.5}, "initial_noise_multiplier cannot be used here"),
    ],
)
def test_image_requests_that_are_refused(
    served: HttpServer, fields: dict[str, Any], message: str
) -> None:
    sent = webuiapi.raw_b64_img(Image.new("RGB", (40, 40)))
    size = served.pool.find("tiny").manifest.size
    body = {
        "init_images": [sent], "width": size.width.opt, "height": size.height.opt,
        "override_settings": {"sd_model_checkpoint": "tiny"},
    }  # fmt: skip
    if not fields:
        del body["init_images"]
    assert message in refused(served, "img2img", body | fields)


def test_a_bundle_without_image_to_image_says_so(served: HttpServer) -> None:
    sent = webuiapi.raw_b64_img(Image.new("RGB", (64, 64)))
    message = refused(served, "img2img", {"init_images": [sent]})
    assert "built without image-to-image" in message


INERT: dict[str, Any] = {
    "enable_hr": False, "hr_scale": 2, "hr_prompt": "x", "restore_faces": False, "tiling": False,
    "styles": [],
    "subseed": 7, "subseed_strength": 0, "seed_resize_from_h": -1, "seed_resize_from_w": 0,
    "s_churn": 0, "s_tmax": 0, "s_noise": 1, "eta": 1.0, "mask": None, "script_name": "",
    "script_args": [1], "refiner_checkpoint": "", "refiner_switch_at": 0.8, "save_images": True,
    "do_not_save_grid": True, "denoising_strength": 0.7, "firstphase_width": 0, "made_up": 3,
    "alwayson_scripts": {
        "ADetailer": {"args": [False, {"ad_model": "x"}]}, "Refiner": {"args": [False, "", 0.8]},
        "ControlNet": {"args": [{"enabled": False, "image": "x"}]}, "animatediff": {"args": []},
        "Self Attention Guidance": {"args": [False, 0.75]},
    },
    "override_settings": {
        "sd_vae": "Automatic", "eta_noise_seed_delta": 0, "made_up": 3, "samples_format": "png",
    },
}  # fmt: skip


def test_what_changes_nothing_is_accepted(
    served: HttpServer, shapes_pipeline: TGatePipeline
) -> None:
    status, found = served.post("/sdapi/v1/txt2img", **RUN | INERT, cfg_scale=7)
    assert status == 200, found
    with Image.open(io.BytesIO(base64.b64decode(found["images"][0]))) as image:
        assert close(image, alone(shapes_pipeline))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("firstphase_width", 64), ("restore_faces", True), ("tiling", True),
        ("styles", ["x"]), ("subseed_strength", 0.1), ("seed_resize_from_w", 64), ("mask", "AAAA"),
        ("refiner_checkpoint", "x"), ("script_name", "X/Y/Z plot"), ("s_churn", 1),
        ("s_min_uncond", 1), ("infotext", "Steps: 3"), ("eta", 0.5),
        ("alwayson_scripts", {"ADetailer": {"args": [True]}}),
        ("alwayson_scripts", {"ADetailer": {"args": [{"ad_model": "x"}]}}),
        ("alwayson_scripts", {"Sampler": {"args": [20, "Euler"]}}),
        ("alwayson_scripts", {"controlnet": {"args": [{"enabled": False}, {"enabled": True}]}}),
    ],
)  # fmt: skip
def test_what_would_change_the_picture_is_refused(
    served: HttpServer, field: str, value: Any
) -> None:
    message = refused(served, "txt2img", {**RUN, field: value})
    assert field in message
    assert "cannot be used" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 512}, "width 512 does not fit: this bundle was built for width 64"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 10**6}, "steps must be 1 to"),
        ({"batch_size": 4, "n_iter": 3}, "batch_size * n_iter must be at most 10, got 4 * 3"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"n_iter": -1}, "n_iter must be at least 1"),
        ({"seed": -2}, "seed must be 0 to"),
        ({"gate_step": 0}, "gate_step must be at least 1"),
        ({"cfg_scale": 10**400}, "cfg_scale is too large"),
        ({"prompt": "a <lora:x:1> b"}, "<lora:...> cannot be used"),
        ({"override_settings": {"sd_vae": "x"}}, "sd_vae cannot be used"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 0}}, "CLIP_stop_at_last_layers must"),
    ],
)
def test_values_that_are_refused(served: HttpServer, fields: dict[str, Any], message: str) -> None:
    assert message in refused(served, "txt2img", RUN | fields)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 100000,
        b'{"cfg_scale": NaN}', b'{"prompt": ["a"]}', b'{"prompt": 3}', b'{"steps": "x"}',
        b'{"steps": 2.5}', b'{"steps": true}', b'{"steps": [2]}', b'{"batch_size": "1"}',
        b'{"seed": 18446744073709551616}', b'{"seed": "x"}', b'{"sampler_name": 1}',
        b'{"scheduler": {}}', b'{"width": 32.5}', b'{"override_settings": []}',
        b'{"override_settings": {"sd_model_checkpoint": 3}}', b'{"send_images": 1}',
        b'{"alwayson_scripts": []}', b'{"steps": ' + b"9" * 5000 + b"}",
        b'{"alwayson_scripts": {"a": {"args": {"b": 1}}}}', b'{"alwayson_scripts": {"a": 1}}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(served: HttpServer, client: Any, body: bytes) -> None:
    for path in ("txt2img", "img2img"):
        status, _, content = served.send(f"/sdapi/v1/{path}", body or b" ")
        assert status == 400
        refusal(status, content)
    assert client.txt2img(**RUN).images


def test_a_refusal_is_counted_as_such(served: HttpServer) -> None:
    refused(served, "txt2img", {"steps": 0})
    counted = served.send("/metrics")[2].decode()
    assert 'tgate_http_responses_total{route="/sdapi/v1/txt2img",status="400"}' in counted
    assert 'status="500"' not in counted


def test_paths_and_methods_that_there_are_not(served: HttpServer) -> None:
    for path, body, status in (
        ("png-info", b"{}", 404), ("txt2img", None, 405), ("progress", b"{}", 405),
    ):  # fmt: skip
        found, _, content = served.send(f"/sdapi/v1/{path}", body)
        assert (path, found) == (path, status)
        refusal(found, content)
    found, _, content = served.send("/sdapi/v1/txt2img", b"{}", kind="text/plain")
    assert found == 415
    refusal(found, content)


@pytest.mark.usefixtures("slow")
def test_progress_of_a_long_run(client: Any, served: HttpServer) -> None:
    idle = client.get_progress()
    assert idle["progress"] == 0
    assert idle["state"]["job_count"] == 0
    assert idle["current_image"] is None
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.txt2img, **LONG)
        wait_until(lambda: client.get_progress()["state"]["sampling_step"] > 1)
        other = webuiapi.WebUIApi(port=served.port)
        second = pool.submit(other.txt2img, **LONG | {"steps": 80})
        model = served.pool.find(None)
        assert model.batcher is not None
        wait_until(lambda: model.batcher.stats().in_flight == 2)
        seen = [client.get_progress() for _ in range(5)]
        status, _, content = served.send("/sdapi/v1/progress?skip_current_image=true")
        assert status == 200
        client.interrupt()
        for each in (first, second):
            assert each.result(timeout=60).info["tgate"] == {"interrupted": True}
    assert json.loads(content)["current_image"] is None
    steps = [each["state"]["sampling_step"] for each in seen]
    assert steps == sorted(steps)
    for each in seen:
        state = each["state"]
        assert 0 < each["progress"] < 1
        assert each["progress"] == pytest.approx(state["sampling_step"] / 100, abs=0.011)
        assert each["eta_relative"] > 0
        assert state["sampling_steps"] == 100  # of the older one
        assert (state["job"], state["job_count"], state["job_no"]) == ("scripts_txt2img", 1, 0)
        assert (state["interrupted"], state["skipped"]) == (False, False)
        assert len(state["job_timestamp"]) == 14
        with Image.open(io.BytesIO(base64.b64decode(each["current_image"]))) as image:
            assert image.size == (64, 64)
    assert client.get_progress() == idle


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("way", ["interrupt", "skip"])
def test_an_interrupted_run_ends_early_with_what_there_is(
    client: Any, served: HttpServer, shapes_pipeline: TGatePipeline, way: str
) -> None:
    batcher = served.pool.find(None).batcher
    assert batcher is not None
    before = batcher.stats().outcomes.get("cancelled", 0)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.txt2img, **LONG, batch_size=2)
        wait_until(lambda: client.get_progress()["state"]["sampling_step"] > 1)
        assert getattr(webuiapi.WebUIApi(port=served.port), way)() == (
            {} if way == "interrupt" else None
        )
        found = running.result(timeout=60)
    assert [image.size for image in found.images] == [(64, 64)] * 2
    assert found.info["all_seeds"] == [11, 12]
    assert found.info["steps"] == 100
    wait_until(lambda: batcher.stats().outcomes.get("cancelled", 0) > before)
    wait_until(lambda: batcher.stats().in_flight == 0)
    # There is nothing to interrupt now, and what comes later is whole.
    client.interrupt()
    assert close(client.txt2img(**RUN).image, alone(shapes_pipeline))


@pytest.mark.usefixtures("slow")
def test_who_leaves_frees_the_place(served: HttpServer) -> None:
    import http.client

    batcher = served.pool.find(None).batcher
    assert batcher is not None
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.request(
        "POST", "/sdapi/v1/txt2img", json.dumps(LONG), {"Content-Type": "application/json"}
    )
    wait_until(lambda: batcher.stats().in_flight == 1)
    connection.close()
    wait_until(lambda: batcher.stats().in_flight == 0)
    _, found = served.post("/sdapi/v1/interrupt")
    assert found == {}
    assert json.loads(served.send("/sdapi/v1/progress")[2])["state"]["job_count"] == 0


def test_models_and_settings(client: Any, served: HttpServer, tiny_pipeline: TGatePipeline) -> None:
    assert client.util_get_model_names() == ["shapes", "tiny"]
    assert client.util_get_current_model() == "shapes"
    assert {"Euler", "DPM++ 2M", "PLMS"} <= set(client.util_get_sampler_names())
    assert client.util_get_scheduler_names() == ["automatic", "karras", "uniform"]
    size = tiny_pipeline.manifest.size
    run = {**RUN, "width": size.width.opt, "height": size.height.opt}
    try:
        client.util_set_model("tiny")
        assert client.util_get_current_model() == "tiny"
        assert "dpm++3m" not in client.util_get_sampler_names()
        found = client.txt2img(**run)
        assert close(found.image, alone(tiny_pipeline))
        # What was read may be sent back, and says what is skipped of the text encoder.
        client.set_options(client.get_options() | {"CLIP_stop_at_last_layers": 2})
        assert client.get_options()["CLIP_stop_at_last_layers"] == 2
        skipped = client.txt2img(**run)
        assert close(skipped.image, alone(tiny_pipeline, clip_skip=1))
        assert not close(skipped.image, found.image)
        assert skipped.info["clip_skip"] == 2
        # A request's own stand above.
        whole = client.txt2img(**run, override_settings={"CLIP_stop_at_last_layers": 1})
        assert close(whole.image, found.image)
    finally:
        client.set_options({"sd_model_checkpoint": "shapes", "CLIP_stop_at_last_layers": 1})
    assert client.txt2img(**RUN).info["sd_model_name"] == "shapes"
    message = refused(served, "options", {"sd_model_checkpoint": "other"}, 404)
    assert message == "sd_model_checkpoint: unknown model 'other': there are shapes, tiny"
    assert "tiling cannot be used" in refused(served, "options", {"tiling": True})
    override = {"override_settings": {"sd_model_checkpoint": "other"}}
    assert "unknown model 'other'" in refused(served, "txt2img", RUN | override, 404)


def test_what_clients_ask_at_start(client: Any) -> None:
    assert client.get_scripts() == {"txt2img": [], "img2img": []}
    assert (client.has_controlnet, client.has_adetailer) == (False, False)
    for name in (
        "loras", "sd_vae", "hypernetworks", "face_restorers", "realesrgan_models", "prompt_styles",
    ):  # fmt: skip
        assert getattr(client, f"get_{name}")() == [], name
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_cmd_flags() == {"api": True}
    assert client.refresh_checkpoints() is None
    ram = client.get_memory()["ram"]
    assert 0 < ram["used"] < ram["total"]
    assert {sampler["name"]: sampler["aliases"] for sampler in client.get_samplers()}[
        "DPM++ 2M"
    ] == ["dpm++2m", "dpm++2m-karras"]
    for model in client.get_sd_models():
        assert set(model) == {"title", "model_name", "hash", "sha256", "filename", "config"}


def test_keys_are_passwords(shapes_bundle: Path) -> None:
    options = ServeOptions(api_keys=frozenset({"secret"}))
    with HttpServer({"shapes": shapes_bundle}, options) as server:
        good = webuiapi.WebUIApi(port=server.port, username="any", password="secret")
        assert good.txt2img(**RUN).images
        assert good.interrupt() == {}
        for wrong in ({"username": "any", "password": "other"}, {}):
            with pytest.raises(RuntimeError, match="401"):
                webuiapi.WebUIApi(port=server.port, **wrong).txt2img(**RUN)
        status, _, content = server.send("/sdapi/v1/sd-models")
        assert (status, "API key" in refusal(status, content)) == (401, True)
