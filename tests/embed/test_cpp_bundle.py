"""A bundle that Python refuses is refused in C++: the same kind of error, of the same field."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bundle.test_integrity import SEEN_BY_SIZE, Damage, add_bystanders, change_byte
from tests.bundle.test_plans import DAMAGES
from tests.bundle.test_plans import bundle as bundle_with_plans  # noqa: F401
from tests.bundle.test_sampler_table import edit, make_starts, make_steps, make_table
from tests.support import loras
from tests.support.cpp_driver import Driver, Refusal, assert_alike
from tests.support.manifest import ESCAPES, FILE, VALID, changed
from tgate_export import fuse_loras
from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.manifest import SCHEMA_MINOR
from tgate_export.bundle.manifest_checks import RESERVED
from tgate_export.bundle.manifest_reader import parse_manifest
from tgate_export.bundle.sampler_file import read_sampler_table, write_sampler_table
from tgate_export.common.errors import BundleError

WHERE = Path("bundle/manifest.json")


def python_error(call: Callable[[], object]) -> BundleError:
    with pytest.raises(BundleError) as caught:
        call()
    return caught.value


def assert_same_refusal(driver: Driver, bundle: Path, *, check_hashes: bool = True) -> None:
    expected = python_error(lambda: open_bundle(bundle, check_hashes=check_hashes))
    found = driver.refusal("open", bundle=str(bundle), check_hashes=check_hashes)
    assert_alike(found, expected)
    assert str(bundle) in found.text


def test_a_good_bundle_opens(driver: Driver, tiny_bundle: Path) -> None:
    assert driver("open", bundle=str(tiny_bundle)) == {"name": "tiny"}


def test_a_bundle_that_got_a_lora_opens(driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    pair = torch.ones(1, 4, 3, 3), torch.ones(32, 1, 1, 1)
    file = loras.save(loras.peft("unet.", {"conv_in": pair}), tmp_path / "fox.safetensors")
    fuse_loras(tiny_bundle, [(str(file), 1.0)], out=tmp_path / "fox")
    assert driver("open", bundle=str(tmp_path / "fox")) == {"name": "tiny"}


@pytest.mark.parametrize("damage", [*(damage for damage, _ in SEEN_BY_SIZE), change_byte])
def test_damage(driver: Driver, tiny_bundle_copy: Path, damage: Damage) -> None:
    damage(tiny_bundle_copy)
    assert_same_refusal(driver, tiny_bundle_copy)
    if damage is not change_byte:
        assert_same_refusal(driver, tiny_bundle_copy, check_hashes=False)


def test_what_others_put_into_folders_is_let_be(driver: Driver, tiny_bundle_copy: Path) -> None:
    add_bystanders(tiny_bundle_copy)
    assert driver("open", bundle=str(tiny_bundle_copy)) == {"name": "tiny"}
    (tiny_bundle_copy / "graphs" / "README.md").write_text("x")
    assert_same_refusal(driver, tiny_bundle_copy)


def no_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def manifest_is_a_folder(bundle: Path) -> None:
    no_manifest(bundle)
    (bundle / "manifest.json").mkdir()


def manifest_is(content: bytes) -> Callable[[Path], None]:
    def write(bundle: Path) -> None:
        (bundle / "manifest.json").write_bytes(content)

    return write


def plans_without_record(bundle: Path) -> None:
    (bundle / "plans" / "a").mkdir(parents=True)
    (bundle / "plans" / "a" / "full.plan").write_bytes(b"engine")


def file_beside_plans(bundle: Path) -> None:
    (bundle / "plans").mkdir()
    (bundle / "plans" / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    "damage",
    [
        no_manifest, manifest_is_a_folder, manifest_is(b"\xff\xfe\x00"), manifest_is(b"{"),
        manifest_is(b""), plans_without_record, file_beside_plans,
    ],
)  # fmt: skip
def test_other_damage(
    driver: Driver, tiny_bundle_copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(tiny_bundle_copy)
    assert_same_refusal(driver, tiny_bundle_copy)


@pytest.mark.parametrize("path", ["nothing", "file", "file/inside", "./nothing//here/", "../up"])
def test_what_is_no_bundle(driver: Driver, tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    where = f"{tmp_path}/{path}"
    expected = python_error(lambda: open_bundle(where))
    found = driver.refusal("open", bundle=where)
    assert_alike(found, expected)
    assert "tgate-export build" in found.text


def test_a_link_to_a_bundle_opens(driver: Driver, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_bundle)
    assert driver("open", bundle=str(tmp_path / "link")) == {"name": "tiny"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_plans(driver: Driver, bundle_with_plans: Path, damage: str) -> None:  # noqa: F811
    assert "name" in driver("open", bundle=str(bundle_with_plans))
    DAMAGES[damage][0](bundle_with_plans / "plans" / "set")
    assert_same_refusal(driver, bundle_with_plans)


def refuse_alike(driver: Driver, text: str) -> Refusal:
    expected = python_error(lambda: parse_manifest(text, WHERE))
    found = driver.refusal("manifest", text=text, where=str(WHERE))
    assert_alike(found, expected)
    assert found.text.startswith(str(WHERE))
    return found


def test_a_good_manifest_is_read(driver: Driver) -> None:
    assert driver("manifest", text=json.dumps(VALID), where="x") == {"ok": True}


@pytest.mark.parametrize(
    "text",
    ["", "{", "not json", "\ufeff{}", "[" * 100_000, "[]", "null", "3", '"x"', "{}", '{"name": 1}'],
)
def test_text_that_is_no_manifest(driver: Driver, text: str) -> None:
    refuse_alike(driver, text)


@pytest.mark.parametrize("version", [1, 3, 99, 0, -1, "1", "it's", True, None, 1.5, "a\nb"])
def test_schema_versions(driver: Driver, version: object) -> None:
    found = refuse_alike(driver, json.dumps({**VALID, "schema_version": version}))
    assert found.field == "schema_version"
    wanted = {1: "build the bundle again", 3: "update tgate-export"}
    if type(version) is int and version in wanted:
        assert wanted[version] in found.text


@pytest.mark.parametrize("minor", [-1, "1", None, True, 2**70])
def test_minor_versions(driver: Driver, minor: object) -> None:
    found = refuse_alike(driver, json.dumps({**VALID, "schema_minor": minor}))
    assert found.field == "schema_minor"


def test_an_ability_that_this_reader_lacks_is_named(driver: Driver) -> None:
    found = refuse_alike(driver, json.dumps(VALID | {"schema_minor": 1, "requires": ["telepathy"]}))
    assert found.field == "requires"
    assert "'telepathy'" in found.text
    assert "update tgate-export" in found.text


def test_a_newer_minor_version_may_have_more_fields(driver: Driver) -> None:
    """At every depth; those of the known version are refused where they are."""
    read = 0
    for place in [(), *(place for place in paths(VALID) if isinstance(at(VALID, place), dict))]:
        raw = json.loads(json.dumps(VALID))
        at(raw, place)["surprise"] = {"a": [1]}
        refuse_alike(driver, json.dumps(raw))
        read += read_alike(driver, json.dumps(raw | {"schema_minor": SCHEMA_MINOR + 1}))
    assert read > 30


def read_alike(driver: Driver, text: str) -> bool:
    """Check that a manifest is read, or else refused alike; say whether it was read."""
    try:
        parse_manifest(text, WHERE)
    except BundleError:
        refuse_alike(driver, text)
        return False
    assert driver("manifest", text=text, where="x") == {"ok": True}, text
    return True


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_parameter_has_no_name_of_every_runs(driver: Driver, name: str) -> None:
    raw = json.loads(json.dumps(VALID))
    raw["parameters"][name] = {"type": "integer", "default": 1}
    refuse_alike(driver, json.dumps(raw))


VALUES = [None, True, 3, 0, -1, 4.5, "", "x", "25", [], [1], {}, {"a": 1}]


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of everything in a JSON value."""
    items: Any = []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    found = [prefix] if prefix else []
    for key, inner in items:
        found += paths(inner, (*prefix, key))
    return found


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def test_every_field_of_a_wrong_type_is_refused_alike(driver: Driver) -> None:
    refused = 0
    for place in paths(VALID):
        for value in VALUES:
            raw = json.loads(json.dumps(VALID))
            edit(raw, list(place), value)
            refused += not read_alike(driver, json.dumps(raw))
    assert refused > 500


def test_every_missing_and_every_extra_field_is_named(driver: Driver) -> None:
    for place in paths(VALID):
        raw = json.loads(json.dumps(VALID))
        inner: Any = raw
        for key in place[:-1]:
            inner = inner[key]
        if isinstance(inner, list):
            continue
        if isinstance(inner[place[-1]], dict):
            inner[place[-1]]["surprise"] = 1
            refuse_alike(driver, json.dumps(raw))
        del inner[place[-1]]
        read_alike(driver, json.dumps(raw))


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("field", ["graphs|full|file", "graphs|full|weights", "samplers|ddim|file",
                                   "tokenizers|input_ids|file"])  # fmt: skip
def test_paths_that_leave_the_bundle(driver: Driver, field: str, path: str) -> None:
    raw = changed(field, path)
    raw["files"][path] = FILE
    refuse_alike(driver, json.dumps(raw))
    raw = json.loads(json.dumps(VALID))
    raw["files"][path] = FILE
    refuse_alike(driver, json.dumps(raw))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.text(st.sampled_from("ab./\\'\"é\n\x00\u200b"), max_size=8))
def test_any_path(driver: Driver, path: str) -> None:
    raw = json.loads(json.dumps(VALID))
    raw["files"][path] = FILE
    read_alike(driver, json.dumps(raw))


@pytest.mark.parametrize("file", sorted(VALID["files"]))
def test_a_file_that_is_used_must_be_listed(driver: Driver, file: str) -> None:
    raw = json.loads(json.dumps(VALID))
    del raw["files"][file]
    refuse_alike(driver, json.dumps(raw))


def table_file(folder: Path) -> Path:
    file = folder / "pndm.json"
    write_sampler_table(make_table(make_steps(1), make_steps(2, 1, starts=make_starts(1, 1))), file)
    return file


def table_refused_alike(driver: Driver, file: Path) -> None:
    with pytest.raises(ValueError, match="is not a sampler table") as caught:
        read_sampler_table(file)
    found = driver.refusal("table", file=str(file))
    assert found.kind == "bundle"
    assert found.text.startswith(f"{file} is not a sampler table: ")
    # Python says where, as in "steps[0].weights", before what.
    named = re.match(r"([a-z_]+[a-z_.0-9\[\]]*?)\.?: ", str(caught.value).split(" table: ")[1])
    if named and named[1] != "document":
        assert found.field == re.sub(r"\[(\d+)\]", r".\1", named[1]), str(caught.value)


def test_every_table_is_read_alike(driver: Driver, tiny_bundle: Path) -> None:
    files = sorted((tiny_bundle / "samplers").iterdir())
    assert len(files) >= 4
    for file in files:
        table = read_sampler_table(file)
        assert driver("table", file=str(file)) == {"counts": len(table.steps)}
        for count in {1, 2, 25, 100} & table.steps.keys():
            found = driver("table", file=str(file), steps=count)
            expected = table.for_steps(count)
            assert found["timesteps"] == expected.timesteps.tolist()
            assert found["weights"] == expected.weights.tolist()
            assert found["step_of_evaluation"] == list(expected.step_of_evaluation)


def test_every_field_of_a_table_of_a_wrong_type(driver: Driver) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = table_file(Path(folder))
        good = json.loads(file.read_text())
        refused = 0
        for place in paths(good):
            for value in [KeyError, *VALUES, 1e39, 2, [[0.0] * 9] * 2]:
                if value is KeyError and isinstance(place[-1], int):
                    continue
                document = json.loads(json.dumps(good))
                edit(document, list(place), value)
                file.write_text(json.dumps(document))
                try:
                    read_sampler_table(file)
                except ValueError:
                    table_refused_alike(driver, file)
                    refused += 1
                except (TypeError, OverflowError):
                    assert "error" in driver("table", file=str(file))
                else:
                    assert "counts" in driver("table", file=str(file)), (place, value)
        assert refused > 500


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"schema_version": Infinity}', "[1] 2"])
def test_what_is_no_table(driver: Driver, tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text, encoding="latin-1")
    table_refused_alike(driver, file)
