"""A bundle while it is put together: what is there, and what is left to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tgate_export.build.compare import is_compared
from tgate_export.build.request import BuildRequest
from tgate_export.bundle.manifest import File
from tgate_export.common.progress import Progress
from tgate_export.export.content_cache import ContentCache
from tgate_export.export.unit import GRAPHS_FOLDER, ExportedUnit
from tgate_export.families import geometry
from tgate_export.families.units import Unit, prompt_encoder

if TYPE_CHECKING:
    from tgate_export.families.loading import Components


@dataclass
class Assembly:
    """A bundle while it is put together.

    Attributes:
        request: what is built.
        staging: the bundle's folder.
        cache: where units are taken from and kept.
        progress: told of every stage.
        keys: of the bundle's units, in the order of their graphs.
        exported: those of them that are there, by name.
        hashes: of their files, where they are known.
        model: what is needed of the PyTorch model, while it is needed.
    """

    request: BuildRequest
    staging: Path
    cache: ContentCache
    progress: Progress
    keys: dict[Unit, str]
    exported: dict[str, ExportedUnit] = field(default_factory=dict)
    hashes: dict[str, File] = field(default_factory=dict)
    model: Components | None = None

    @property
    def graphs(self) -> Path:
        """The folder of graphs and weights."""
        return self.staging / GRAPHS_FOLDER

    @property
    def missing(self) -> list[Unit]:
        """Units that have to be exported."""
        return [unit for unit in self.keys if unit.name not in self.exported]

    @property
    def unproven(self) -> list[Unit]:
        """Units that have to be compared with PyTorch."""
        return [
            unit
            for unit in self.keys
            if unit.name not in self.exported or not is_compared(self.exported[unit.name])
        ]

    @property
    def reduced(self) -> bool:
        """Whether the bundle's size is too large for PyTorch and ONNX Runtime on a CPU."""
        size = self.request.options.size
        return geometry.check_size(self.request.source, size) != size

    @property
    def compared_here(self) -> list[Unit]:
        """Units that are compared at the bundle's size, and not on a reduced copy."""
        # It scales the image by kernels that depend on the size, and is small enough.
        encoder = prompt_encoder(self.request.source)
        return [unit for unit in self.unproven if not self.reduced or unit.name == encoder]

    def in_order(self) -> dict[str, ExportedUnit]:
        """Return all units in the order of their graphs."""
        return {unit.name: self.exported[unit.name] for unit in self.keys}
