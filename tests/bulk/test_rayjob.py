"""The Kubernetes manifest of a bulk run on Ray, as far as it can be tried here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

import tgate_export
from tests.support.linters import assert_linted
from tgate_export.cli.generate import command

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = list(yaml.safe_load_all((ROOT / "docs" / "bulk" / "rayjob.yaml").read_text()))


def spec() -> dict[str, Any]:
    (found,) = (each for each in OBJECTS if each["kind"] == "RayJob")
    assert found["apiVersion"] == "ray.io/v1"
    return dict(found["spec"])


def groups() -> list[dict[str, Any]]:
    """The head and the workers."""
    cluster = spec()["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_linters_find_nothing_in_pods_and_the_volume(tmp_path: Path) -> None:
    """Kubernetes' own kinds, which the templates of KubeRay's are."""
    documents = [each for each in OBJECTS if each["kind"] != "RayJob"]
    for number, group in enumerate(groups()):
        metadata = {"name": f"group-{number}", **group["template"].get("metadata", {})}
        documents.append(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, **group["template"]}
        )
    assert len(documents) == 3
    (file := tmp_path / "pods.yaml").write_text(yaml.safe_dump_all(documents))
    assert_linted(file)


def test_pods_can_do_no_more_than_they_must() -> None:
    for group in groups():
        pod = group["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["image"] == f"tgate-bulk:{tgate_export.__version__}"
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert all("hostPath" not in volume for volume in pod["volumes"])


def test_workers_have_gpus_and_the_head_generates_nothing() -> None:
    head, worker = groups()
    assert head["rayStartParams"]["num-cpus"] == "0"
    limits = [each["template"]["spec"]["containers"][0]["resources"]["limits"] for each in groups()]
    assert [each.get("nvidia.com/gpu") for each in limits] == [None, 1]
    assert worker["replicas"] == worker["minReplicas"] == worker["maxReplicas"]


def test_the_command_is_one_that_there_is() -> None:
    """Its paths are on the volume that all have."""
    program, name, *arguments = shlex.split(spec()["entrypoint"])
    assert (program, name) == ("tgate-export", "generate")
    given = command.make_context("generate", arguments).params
    assert given["ray"] == "auto"
    (volume,) = (each["metadata"]["name"] for each in OBJECTS if "accessModes" in each["spec"])
    for group in groups():
        pod = group["template"]["spec"]
        (mounted,) = (
            mount["mountPath"]
            for each in pod["volumes"]
            for mount in pod["containers"][0]["volumeMounts"]
            if mount["name"] == each["name"]
            and each.get("persistentVolumeClaim") == {"claimName": volume}
        )
        for path in (given["bundle"], given["prompts"], given["out"]):
            assert path.is_relative_to(mounted)


def test_ray_is_the_one_that_is_tested() -> None:
    version = spec()["rayClusterSpec"]["rayVersion"]
    assert f"\nray=={version}\n" in (ROOT / "scripts" / "constraints.txt").read_text()
    pages = (ROOT / "docs" / "bulk.md").read_text()
    assert re.findall(r"rayproject/ray:([\d.]+)-", pages) == [version]
