"""The image and the Kubernetes manifest of the documentation, as far as they can be tried here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from triton_server import Server

from tests.support.linters import assert_linted
from tgate_export.embed.triton.client import TGateClient
from tgate_export.embed.triton.repository import ServingOptions, write_repository
from tgate_export.runtime.batching.metrics import FAMILIES

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "triton"


@pytest.mark.parametrize("file", ["Dockerfile", "kubernetes.yaml"])
def test_linters_find_nothing(file: str) -> None:
    assert_linted(FOLDER / file)


def test_autoscaler_reads_a_metric_that_there_is() -> None:
    text = (FOLDER / "kubernetes.yaml").read_text()
    assert "metric: {name: tgate_queue_length}" in text
    assert FAMILIES["tgate_queue_length"][0] == "GAUGE"


def objects(kind: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    (found,) = (document for document in documents if document["kind"] == kind)
    return dict(found["spec"])


def test_the_pod_can_do_no_more_than_it_must() -> None:
    pod = objects("Deployment")["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert "latest" not in container["image"]
    writable = {
        mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")
    }
    assert writable == {"/dev/shm", "/tmp"}
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_the_network_lets_requests_in_and_nothing_out() -> None:
    policy = objects("NetworkPolicy")
    labels = objects("Deployment")["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert (set(policy["policyTypes"]), policy["egress"]) == ({"Ingress", "Egress"}, [])
    (container,) = objects("Deployment")["template"]["spec"]["containers"]
    named = {port["name"] for port in container["ports"]}
    allowed = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert sorted(allowed) == sorted(named)
    assert all(rule["from"] for rule in policy["ingress"])


def test_the_image_is_recent_and_nobody_special_runs_it() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    tag = re.search(r"^ARG BASE=nvcr\.io/nvidia/tritonserver:(\d\d\.\d\d)-py3$", text, re.M)
    least = re.search(r"(\d\d\.\d\d) is the first release without a hole", text)
    assert tag is not None
    assert least is not None
    assert tag[1] >= least[1]
    assert f"imagetools inspect nvcr.io/nvidia/tritonserver:{tag[1]}-py3" in text
    assert "--constraint /src/constraints.txt" in text
    user = objects("Deployment")["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"\nUSER {user}\n" in text
    copied = re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", text, re.M)
    root = FOLDER.parents[1]
    assert all((root / name).exists() for line in copied for name in line.split())


def pins(file: Path) -> set[tuple[str, str]]:
    lines = (line.partition(";")[0].strip() for line in file.read_text().splitlines())
    found = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {(name.replace("_", "-").lower(), version) for name, _, version in found}


def test_the_image_installs_what_is_tested() -> None:
    """But for numpy, of which its base wants an older one, as the server of the tests does."""
    scripts = FOLDER.parents[1] / "scripts"
    image, tested = pins(FOLDER / "constraints.txt"), pins(scripts / "constraints.txt")
    (numpy,) = (pin for pin in image if pin[0] == "numpy")
    assert numpy in pins(scripts / "triton_requirements.txt")
    assert {"pillow", "pydantic", "tokenizers"} <= {name for name, _ in image}
    names = {name for name, _ in tested}
    assert {pin for pin in image if pin[0] in names} - tested == {numpy}


def start(folder: Path, server: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Run the image's entry point with a `tritonserver` of the test's own."""
    program = folder / "tritonserver"
    program.write_text(f"#!/bin/sh\n{server}\n")
    program.chmod(0o755)
    return subprocess.Popen(
        ["sh", str(FOLDER / "serve"), *options], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment},
    )  # fmt: skip


def options_of(folder: Path, **environment: str) -> list[str]:
    process = start(folder, 'printf "%s\\n" "$@" "key $TGATE_ADMIN_KEY"', "--id=x", **environment)
    out, _ = process.communicate(timeout=20)
    *options, key, variable = out.splitlines()
    assert (process.returncode, key, variable) == (0, "--id=x", "key ")
    return options


def test_entry_point_restricts_by_a_key(tmp_path: Path) -> None:
    def key(options: list[str]) -> set[str]:
        return {option.rpartition("=")[2] for option in options if "tgate-admin=" in option}

    (known,) = key(options_of(tmp_path, TGATE_ADMIN_KEY="known to me"))
    (first,), (second,) = key(options_of(tmp_path)), key(options_of(tmp_path))
    assert known == "known to me"
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


def test_entry_point_hands_on_signals_and_the_exit_status(tmp_path: Path) -> None:
    trap = "trap 'sleep 0.3; exit 7' TERM; echo started; while :; do sleep 0.05; done"
    process = start(tmp_path, trap)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 7
    process.stdout.close()
    killed = start(tmp_path, "kill -KILL $$")
    killed.communicate(timeout=20)
    assert killed.returncode == 128 + signal.SIGKILL


@pytest.fixture(scope="module")
def restricted(
    venv: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server of the tests with the image's options; what it is too old for is left out."""
    folder = tmp_path_factory.mktemp("restricted")
    write_repository(
        tiny_bundle, folder / "models", ServingOptions(backend="onnxruntime:cpu"), name="tiny"
    )
    newer = ("--http-max-input-size", "--grpc-max-response-pool-size", "--model-repository")
    options = [
        option for option in options_of(folder, TGATE_ADMIN_KEY="secret")
        if not option.startswith(newer)
    ]  # fmt: skip
    with Server(folder / "models", *options, venv=venv) as server:
        server.ready()
        yield server


def status(server: Server, path: str, body: Any = None, **headers: str) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{server.http}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/repository/index", {}),
        ("/v2/repository/models/tiny/load", {}),
        ("/v2/systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 8}),
        ("/v2/systemsharedmemory/status", None),
        ("/v2/models/tiny/config", None),
        ("/v2/models/tiny/stats", None),
        ("/v2/trace/setting", {"trace_file": "/tmp/x"}),
        ("/v2/logging", {"log_file": "/tmp/x"}),
    ],
)
def test_what_clients_need_not_is_refused(restricted: Server, path: str, body: Any) -> None:
    assert status(restricted, path, body) == 403
    assert status(restricted, path, body, **{"tgate-admin": "guessed"}) == 403
    if body is None:
        assert status(restricted, path, body, **{"tgate-admin": "secret"}) == 200


def test_grpc_is_restricted_too(restricted: Server) -> None:
    import tritonclient.grpc as grpc

    client = grpc.InferenceServerClient(restricted.grpc)
    calls = (
        client.get_model_repository_index, client.get_system_shared_memory_status,
        client.get_trace_settings, client.get_log_settings, client.get_inference_statistics,
    )  # fmt: skip
    for call in calls:
        with pytest.raises(grpc.InferenceServerException, match="restricted"):
            call()
    headers = {"triton-grpc-protocol-tgate-admin": "secret"}
    assert client.get_model_repository_index(headers=headers).models[0].name == "tiny"
    client.close()


def test_what_clients_need_works(restricted: Server) -> None:
    client = TGateClient(restricted.grpc, "tiny")
    assert client.ready()
    assert client.generate("x", steps=2, timeout=60).images.shape == (1, 16, 16, 3)
    assert status(restricted, "/v2/health/live") == 200
    body = {"prompt": "x", "steps": 2}
    assert status(restricted, "/v2/models/tiny/generate", body) == 200
    time.sleep(0.2)  # metrics are renewed every 0.1 s
    done = [v for k, v in restricted.read_metrics().items() if 'outcome="done"' in k]
    assert done == [2]
