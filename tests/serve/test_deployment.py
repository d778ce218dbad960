"""The image and the Kubernetes manifest of the documentation, as far as they can be tried here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.support.linters import assert_linted
from tgate_export.cli.serve import command

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "http"


@pytest.mark.parametrize("file", ["Dockerfile", "kubernetes.yaml"])
def test_linters_find_nothing(file: str) -> None:
    assert_linted(FOLDER / file)


def container() -> tuple[dict[str, Any], dict[str, Any]]:
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    (spec,) = (each["spec"] for each in documents if each["kind"] == "Deployment")
    pod = spec["template"]["spec"]
    (found,) = pod["containers"]
    return pod, found


def test_the_command_takes_its_arguments() -> None:
    _, found = container()
    options = {option for parameter in command.params for option in parameter.opts}
    given = {argument for argument in found["args"] if argument.startswith("--")}
    assert given
    assert given <= options
    text = (FOLDER / "Dockerfile").read_text()
    assert '["tgate-export", "serve", "--host", "0.0.0.0"]' in text
    assert CliRunner().invoke(command, ["--help"]).exit_code == 0


def test_who_is_told_to_stop_has_the_time() -> None:
    pod, found = container()
    stop = int(found["args"][found["args"].index("--stop-seconds") + 1])
    sleep = int(found["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > stop + sleep


def test_the_pod_can_do_no_more_than_it_must() -> None:
    pod, found = container()
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    user = pod["securityContext"]["runAsUser"]
    text = (FOLDER / "Dockerfile").read_text()
    assert f"\nUSER {user}\n" in text
    copied = re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", text, re.M)
    assert copied
    assert all((ROOT / name).exists() for line in copied for name in line.split())
