"""The example of the documentation on a real Ray Serve: two replicas behind one address."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.serve.test_openai import PROMPT, RUN, alone, close, pixels
from tgate_export import TGatePipeline

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
ROOT = Path(__file__).resolve().parents[2]
# Prints an answer a line: of requests that come at once, so that both replicas have some.
DRIVER = """
import json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
import ray
from ray import serve
from docs.http.ray_serve import app

port, bodies = int(sys.argv[1]), json.load(sys.stdin)

def ask(body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/images/generations", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=120).read().decode()

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
try:
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app)
    with ThreadPoolExecutor(len(bodies)) as pool:
        for answer in pool.map(ask, bodies):
            print("ANSWER", answer, flush=True)
finally:
    serve.shutdown()
    ray.shutdown()
"""


def test_the_example(shapes_bundle: Path, shapes_pipeline: TGatePipeline, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bodies = [{"prompt": PROMPT, **RUN, "seed": seed} for seed in range(4)]
    environment = {
        **os.environ, "RAY_USAGE_STATS_ENABLED": "0", "TGATE_BUNDLES": str(shapes_bundle),
        "PYTHONPATH": str(ROOT), "HOME": str(tmp_path),
    }  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-c", DRIVER, str(port)], input=json.dumps(bodies), env=environment,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    answers = [
        json.loads(line.removeprefix("ANSWER "))
        for line in found.stdout.splitlines()
        if line.startswith("ANSWER ")
    ]
    assert len(answers) == len(bodies)
    for body, answer in zip(bodies, answers, strict=True):
        expected = alone(shapes_pipeline, **{**RUN, "seed": body["seed"]})[0]
        assert close(np.asarray(pixels(answer["data"][0]["b64_json"])), expected)
