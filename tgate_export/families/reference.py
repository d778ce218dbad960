"""What a model's name, folder or id stands for, before anything of it is read or fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tgate_export.common.errors import InvalidRequestError
from tgate_export.families.hub import is_hub_id
from tgate_export.families.model_files import PICKLES, SUFFIX
from tgate_export.families.names import NAMED_MODELS, unknown_model


@dataclass(frozen=True)
class Reference:
    """A model that a user named.

    Attributes:
        kind: packaged, local or hub.
        model: as manifests record it: the name of a packaged one, the whole path of a folder or a
            file, or the id.
        name: short name, the default folder of its bundle.
        revision: that the id was written with.
    """

    kind: Literal["packaged", "local", "hub"]
    model: str
    name: str
    revision: str | None = None


def reference(model: str) -> Reference:
    """Return what a model's name, folder, file or Hugging Face id stands for.

    Raises:
        InvalidRequestError: it is none of these.
    """
    named = NAMED_MODELS.get(model)
    if named is not None and named.hub_id is not None:
        return Reference("hub", named.hub_id, model)
    if named is not None:
        return Reference("packaged", model, model)
    path = Path(model)
    if path.is_dir():
        resolved = path.resolve()
        return Reference("local", str(resolved), resolved.name)
    if path.is_file():
        # The name that it was given, and not that of what a link leads to.
        return Reference("local", str(path.absolute()), path.stem)
    if path.suffix.lower() in (SUFFIX, *PICKLES):
        raise InvalidRequestError(f"{model}: no such file")
    if is_hub_id(model):
        hub_id, _, revision = model.partition("@")
        return Reference("hub", hub_id, hub_id.rpartition("/")[2], revision or None)
    raise unknown_model(model)
