"""Plans: engines compiled from a bundle's graphs for TensorRT or TensorRT-RTX, and their record.

A plan set is a folder `plans/<set>/` with one `<graph>.plan` for each graph and a `plans.json`.
`PlanKey` is everything that a plan depends on: what a rebuild compares to find that nothing is to
be done, and what a runtime compares before it loads one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from tgate_export.bundle.bystanders import is_bystander
from tgate_export.bundle.fields import MAX_RANK
from tgate_export.bundle.hash_cache import cached_hashes
from tgate_export.bundle.hashing import hash_files
from tgate_export.bundle.manifest import (
    BundleModel,
    File,
    Manifest,
    Name,
    Positive,
    Range,
)
from tgate_export.bundle.manifest_graphs import Precision
from tgate_export.common.errors import BundleError
from tgate_export.common.json_file import RECORD_BYTES, read_json

PLANS_FOLDER = "plans"
RECORD_NAME = "plans.json"
SCHEMA_VERSION = 1
BUILDING = ".building-"  # in the name of a hidden folder: of a build that is running or was killed

Library = Literal["tensorrt", "tensorrt-rtx"]
Shape = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=MAX_RANK)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ShapeRange(BundleModel):
    """Smallest, usual and largest shape of one input; all equal when it is static."""

    min: Shape
    opt: Shape
    max: Shape

    @property
    def static(self) -> bool:
        """Whether the input has a single shape."""
        return self.min == self.max

    def __contains__(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.min) and all(
            low <= side <= high for low, side, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        shapes = [self.opt] if self.static else [self.min, self.opt, self.max]
        return ":".join("x".join(map(str, shape)) for shape in shapes)


class PlanSettings(BundleModel):
    """What a user can choose about a compilation; defaults are TensorRT's own unless named.

    Attributes:
        optimization_level: 0 (fast to build) to 5 (fast to run); TensorRT's default when None.
        workspace_bytes: scratch memory a kernel may use; no limit but the GPU's when None.
        hardware_compatible: also runs on other GPUs of Ampere and later (TensorRT only).
        version_compatible: also runs with later TensorRT versions (TensorRT only).
        weights_stripped: the plan holds no weights; they are read from the bundle's when loaded.
        weight_streaming: weights may stay on the host, within a budget given when loaded.
        layer_info: keep every layer's details, for profilers and the engine inspector.
    """

    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    workspace_bytes: Positive | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    weights_stripped: bool = False
    weight_streaming: bool = False
    layer_info: bool = False


class PlanKey(BundleModel):
    """Everything a plan depends on: equal keys mean an equal plan.

    Attributes:
        graph: name of the graph.
        graph_sha256: of its ONNX file.
        weights_sha256: of its weights file.
        library: what compiled it.
        version: of TensorRT or TensorRT-RTX.
        compute_capabilities: GPUs it was compiled for, such as "8.9".
        precision: of the computation.
        shapes: of every input.
        settings: see `PlanSettings`.
        code_sha256: of the code that drove the compiler.
    """

    graph: Name
    graph_sha256: Sha256
    weights_sha256: Sha256 | None
    library: Library
    version: str
    compute_capabilities: tuple[Annotated[str, Field(pattern=r"^\d+\.\d$")], ...]
    precision: Precision
    shapes: Annotated[dict[Name, ShapeRange], Field(min_length=1)]
    settings: PlanSettings
    code_sha256: Sha256

    def digest(self) -> str:
        """Return the sha256 of the key's canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: PlanKey) -> tuple[str, ...]:
        """Name what differs: "version: 1.7.1 and 1.8.0"."""
        mine, others = _flat(self.model_dump()), _flat(other.model_dump())
        return tuple(
            f"{name}: {mine.get(name)} and {others.get(name)}"
            for name in sorted(mine.keys() | others.keys())
            if mine.get(name) != others.get(name)
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _plain_name(name: str) -> str:
    if not name.isprintable() or "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not the plain name of a file")
    return name


class Plan(BundleModel):
    """One compiled graph: its file beside the record, and what it was compiled from."""

    file: Annotated[str, AfterValidator(_plain_name)]
    content: File
    key: PlanKey
    key_sha256: Sha256


class PlanRecord(BundleModel):
    """The whole of a plan set's `plans.json`."""

    schema_version: Literal[1]
    plans: dict[Name, Plan]


class PlanSet:
    """A folder of plans that were compiled together.

    Attributes:
        path: the folder.
        plans: by graph.
    """

    def __init__(self, path: Path, plans: Mapping[str, Plan]) -> None:
        self.path = path
        self.plans = plans

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def key(self) -> PlanKey:
        """The key of any of the plans: library, version, GPUs and settings are the same in all."""
        return next(iter(self.plans.values())).key

    def file(self, graph: str) -> Path:
        """Return the path of a graph's plan."""
        return self.path / self.plans[graph].file


def plan_set_name(
    library: Library,
    version: str,
    compute_capabilities: tuple[str, ...],
    precision: Precision,
    batch: Range,
    width: Range,
    height: Range,
) -> str:
    """Return the folder name of a plan set: what people choose it by."""
    gpus = "+".join(f"sm{capability.replace('.', '')}" for capability in compute_capabilities)
    sides = [str(side).replace(":", "_") for side in (batch, width, height)]
    return f"{library}-{version}-{gpus}-{precision}-b{sides[0]}-{sides[1]}x{sides[2]}"


def plan_sets(bundle: Path) -> Iterator[PlanSet]:
    """Read the record of every plan set of a bundle, by name.

    Raises:
        BundleError: a record is missing, damaged, or was changed.
    """
    folder = bundle / PLANS_FOLDER
    if not os.path.lexists(folder):
        return
    for path in (folder, *(sorted(folder.iterdir()) if _is_real_folder(folder) else ())):
        if is_bystander(f"{PLANS_FOLDER}/{path.name}"):
            continue
        hidden = path.name.startswith(".")
        if not _is_real_folder(path) or (hidden and BUILDING not in path.name):
            raise BundleError(f"{path} does not belong to the bundle: move it elsewhere")
        if path != folder and not hidden:
            yield read_plan_set(path)


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def read_plan_set(path: Path) -> PlanSet:
    """Read one plan set's record.

    Raises:
        BundleError: it is missing, damaged, newer than this package, or was changed.
    """
    record = path / RECORD_NAME
    try:
        if record.is_symlink():
            raise ValueError("it is a link")
        raw = read_json(record, RECORD_BYTES)
    except FileNotFoundError:
        raise BundleError(f"{record} is missing: {_again(path)}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read {record} ({error}): {_again(path)}") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        raise BundleError(
            f"{record} has schema version {version}, this tgate-export reads up to "
            f"{SCHEMA_VERSION}: update tgate-export, or build the plans again"
        )
    try:
        plans = PlanRecord.model_validate_json(json.dumps(raw)).plans
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "record"
        raise BundleError(f"{record}: {field}: {first['msg']}: {_again(path)}") from None
    if not plans:
        raise BundleError(f"{record} lists no plans: {_again(path)}")
    for graph, plan in plans.items():
        if plan.key.digest() != plan.key_sha256 or plan.key.graph != graph:
            raise BundleError(
                f"{record}: the key of {graph!r} was changed after the build: {_again(path)}"
            )
    return PlanSet(path, plans)


def write_record(folder: Path, plans: Mapping[str, Plan]) -> None:
    """Write the record of a plan set whose files are in `folder`."""
    text = PlanRecord(schema_version=1, plans=dict(plans)).model_dump_json(indent=1)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def check_plan_sets(
    bundle: Path, manifest: Manifest, *, check_hashes: bool, cache_hashes: bool = False
) -> None:
    """Check every plan set of a bundle: complete, unchanged, compiled from these graphs.

    Raises:
        BundleError: names the first file that is missing, extra, changed or stale.
    """
    for plans in plan_sets(bundle):
        check_plan_set(plans, manifest, check_hashes=check_hashes, cache_hashes=cache_hashes)


def check_plan_set(
    plans: PlanSet, manifest: Manifest, *, check_hashes: bool, cache_hashes: bool = False
) -> None:
    """Check one plan set; see `check_plan_sets`."""
    known = {plan.file: plan.content for plan in plans.plans.values()}
    for name, content in known.items():
        path = plans.path / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path} is missing: {_again(plans.path)}")
        if path.stat().st_size != content.bytes:
            raise BundleError(
                f"{path} has {path.stat().st_size} bytes, {content.bytes} were built: "
                f"{_again(plans.path)}"
            )
    names = {path.name for path in plans.path.iterdir()} - known.keys() - {RECORD_NAME}
    extra = sorted(name for name in names if not is_bystander(f"{PLANS_FOLDER}/{name}"))
    if extra:
        raise BundleError(
            f"{plans.path / extra[0]} does not belong to the bundle: move it elsewhere"
        )
    for graph, plan in plans.plans.items():
        if stale := stale_parts(plan.key, manifest):
            raise BundleError(
                f"{plans.file(graph)} was compiled from other graphs than this bundle's "
                f"({', '.join(stale)}): {_again(plans.path)}"
            )
    if check_hashes:
        hashes = cached_hashes if cache_hashes else hash_files
        for name, found in hashes(plans.path, known):
            if found.sha256 != known[name].sha256:
                raise BundleError(
                    f"{plans.path / name} was changed after the build (its sha256 differs): "
                    f"{_again(plans.path)}"
                )


def keep_plans(old: Path, new: Path, manifest: Manifest, *, beside: Path | None = None) -> None:
    """Give a new bundle the plans of the one it replaces that were compiled from the same graphs.

    Args:
        old: the bundle that is being replaced, if there is one.
        new: the folder of the new one.
        manifest: of the new one.
        beside: another bundle whose plans are copied where those of the old one do not serve.
    """
    kept: dict[str, dict[str, Plan]] = {}
    for bundle, give in ((old, link_file), (beside, shutil.copyfile)):
        try:
            found = [] if bundle is None else list(plan_sets(bundle))
        except BundleError:  # damaged: compile again
            continue
        for plans in found:
            files = kept.setdefault(plans.name, {})
            folder = new / PLANS_FOLDER / plans.name
            for graph, plan in plans.plans.items():
                file = plans.file(graph)
                usable = not stale_parts(plan.key, manifest) and not file.is_symlink()
                if usable and graph not in files and file.is_file():
                    folder.mkdir(parents=True, exist_ok=True)
                    give(file, folder / plan.file)
                    files[graph] = plan
    for name, files in kept.items():
        if files:
            write_record(new / PLANS_FOLDER / name, files)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def stale_parts(key: PlanKey, manifest: Manifest) -> tuple[str, ...]:
    """Return what of a plan's key does not come from this bundle."""
    graph = manifest.graphs.get(key.graph)
    if graph is None:
        return (f"no graph {key.graph!r}",)
    weights = manifest.files[graph.weights].sha256 if graph.weights else None
    found = {"graph_sha256": manifest.files[graph.file].sha256, "weights_sha256": weights}
    return tuple(name for name, value in found.items() if getattr(key, name) != value)


def _again(path: Path) -> str:
    return f"remove {path}, and build the plans again"
