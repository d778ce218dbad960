"""Units compared with PyTorch: now, or when these very files were exported (no torch)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from tgate_export.common.code_hash import code_sha256
from tgate_export.common.versions import versions_of
from tgate_export.export.unit import EXPORTERS, Comparison, ExportedUnit, Measured
from tgate_export.verify.differences import Difference, graph_bound


def compared_by() -> str:
    """Hash what graphs are compared with and by: code, and the libraries that compute."""
    content = {
        "code": code_sha256("verify.graphs", "verify.structure", "build.compare"),
        "versions": versions_of((*EXPORTERS, "onnxruntime")),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def with_comparison(unit: ExportedUnit, differences: Iterable[Difference]) -> ExportedUnit:
    """Return a unit with what a comparison of its graphs measured."""
    measured = tuple(
        Measured(
            graph=found.graph, tensor=found.tensor, max_abs=found.max_abs, relative=found.relative
        )
        for found in differences
        if found.graph in unit.graphs
    )
    return unit.model_copy(update={"compared": Comparison(by=compared_by(), measured=measured)})


def is_compared(unit: ExportedUnit) -> bool:
    """Whether every output was compared, as it would be now."""
    outputs = {
        (name, tensor.name) for name, graph in unit.graphs.items() for tensor in graph.outputs
    }
    compared = unit.compared
    return (
        compared is not None
        and compared.by == compared_by()
        and {(found.graph, found.tensor) for found in compared.measured} == outputs
    )


def differences_of(units: Mapping[str, ExportedUnit]) -> tuple[Difference, ...]:
    """Return how far units are from PyTorch, with the bounds that hold now."""
    return tuple(
        Difference(
            found.graph,
            found.tensor,
            found.max_abs,
            found.relative,
            graph_bound(found.tensor, unit.graphs[found.graph].precision),
        )
        for unit in units.values()
        if unit.compared is not None
        for found in unit.compared.measured
    )
