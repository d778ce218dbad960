"""Values that no field should have, in every API: refused, or without effect, and never worse."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from tests.support.http_faults import IMAGES, SHORT, answers
from tests.support.http_server import HttpServer

DEEP = "[" * 60 + "]" * 60
VALUES = [
    "true", "-1", "9" * 30, "-0.0", "1e-400", "1e300", '""', '"\\u0000"', '"\\ud83d\\ude00"',
    '"' + "x" * 5000 + '"', '"<lora:x:1>"', '"data:image/png;base64,AAAA"', '"../../etc/passwd"',
    "[]", '[null, {}, "x"]', "{}", '{"x": {"x": "x"}}', DEEP,
]  # fmt: skip
COMMON = ["prompt", "negative_prompt", "seed", "steps", "gate_step", "guidance_scale", "user"]
FIELDS = {
    IMAGES: [*COMMON, "n", "size", "model", "scheduler", "stream", "deadline", "unknown"],
    "/v1/chat/completions": [*COMMON, "messages", "extra_body", "width", "model", "temperature"],
    "/sdapi/v1/txt2img": [
        *COMMON, "width", "batch_size", "cfg_scale", "sampler_name", "override_settings",
        "alwayson_scripts", "styles", "eta", "unknown",
    ],
    "/sdapi/v1/img2img": ["init_images", "denoising_strength", "mask", "resize_mode"],
    "/sdapi/v1/options": ["sd_model_checkpoint", "CLIP_stop_at_last_layers", "tiling", "unknown"],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of huge guidance
@pytest.mark.parametrize("path", FIELDS)
def test_every_value_in_every_field(server: HttpServer, path: str) -> None:
    found = 0
    for field in FIELDS[path]:
        for value in VALUES:
            fields = {name: json.dumps(each) for name, each in SHORT.items()}
            if path == "/v1/chat/completions":
                fields["messages"] = '[{"role": "user", "content": "a"}]'
            fields[field] = value
            text = ", ".join(f'"{name}": {each}' for name, each in fields.items())
            status, headers, content = server.send(path, f"{{{text}}}".encode())
            case = field, value[:40], status, content[:200]
            assert status in (200, 400, 404), case
            if status != 200:
                error = json.loads(content)
                message = error.get("detail") or error["error"]["message"]
                assert message.isprintable(), case
                assert len(message) < 1000, case
                found += 1
            elif headers["content-type"].startswith("application/json"):
                json.loads(content)
    assert found > len(FIELDS[path])
    assert answers(server)


BOUNDARY = b"--x\r\nContent-Disposition: form-data; name="
END = b"--x--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"--", b"--x", b"--x--", END, BOUNDARY, BOUNDARY + b'"image"\r\n\r\n',
        BOUNDARY + b'"image"; filename="a"\r\n\r\nno picture\r\n' + END,
        BOUNDARY + b'"\xff"\r\n\r\na\r\n' + END, BOUNDARY + b'"prompt"\r\n\r\n\xff\xfe\r\n' + END,
        BOUNDARY + b'"seed"\r\n\r\n' + b"9" * 5000 + b"\r\n" + END,
        BOUNDARY + b'"n"\r\n\r\n' + b"9" * 4000 + b"\r\n" + END,
        BOUNDARY + b'"steps"\r\n\r\n' + b"9" * 5000 + b"\r\n" + END,
        BOUNDARY + b'"deadline"\r\n\r\nnan\r\n' + END,
        BOUNDARY + b'"guidance_scale"\r\n\r\ninf\r\n' + END,
        100 * (BOUNDARY + b'"a"\r\n\r\nb\r\n') + END,
        BOUNDARY + b'"prompt"\r\n\r\n' + b"a" * (2 * 2**20) + b"\r\n" + END,
        b"--x\r\nContent-Disposition: attachment\r\n\r\na\r\n" + END,
        b"--x\r\nNo: thing\r\n\r\na\r\n" + END, b"\x00" * 1000,
    ],
)  # fmt: skip
def test_forms_that_are_none(server: HttpServer, body: bytes) -> None:
    """As they are, and after a picture, without which no other field is looked at."""
    side = server.pool.find(None).manifest.size.width.opt
    picture = io.BytesIO()
    Image.new("RGB", (side, side)).save(picture, "PNG")
    first = BOUNDARY + b'"image"; filename="a"\r\n\r\n' + picture.getvalue() + b"\r\n"
    for sent in (body or b" ", first + body):
        status, _, content = server.send(
            "/v1/images/edits", sent, "multipart/form-data; boundary=x"
        )
        assert status == 400, content[:200]
        message = json.loads(content)["error"]["message"]
        assert message.isprintable()
        assert len(message) < 1000
    assert answers(server)
