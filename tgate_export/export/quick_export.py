"""What makes torch's exporter take half of its time; graphs are the same with and without.

These are internals of torch and onnxscript: where they are no more, a warning says so and exports
take their time.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tgate_export.common.errors import first_line


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Let `torch.onnx.export` take less time."""
    with _quick_matching(), _few_decompositions(), _without_garbage_collection():
        yield


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Let nothing look for cycles among the exporter's millions of objects: a quarter faster."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _few_decompositions() -> Iterator[None]:
    """Have programs decomposed only where there is something to decompose: a third faster.

    The exporter runs every program through a second trace, with symbolic sizes, that takes apart
    what it has no translation for and removes what is done in place. Most denoisers have neither.
    """
    try:
        from torch.onnx._internal.exporter import _core, _fx_passes

        passes, decompose = _core._fx_passes, _fx_passes.decompose_with_registry
    except (ImportError, AttributeError) as error:
        _warn_of("decompose only what it has to", error)
        yield
        return
    moved: list[Exception] = []

    def decompose_if_needed(program: Any, registry: Any) -> Any:
        try:
            known = all(
                _is_translated(node.target, registry)
                for node in program.graph.nodes
                if node.op == "call_function"
            )
        except (AttributeError, TypeError) as error:
            moved.append(error)
            known = False
        return program if known else decompose(program, registry)

    with _patched(passes, "decompose_with_registry", decompose_if_needed):
        yield
    if moved:
        _warn_of("decompose only what it has to", moved[0])


# Checks of sizes and types while a graph is traced, which the exporter removes from it.
_ASSERTIONS = ("aten::_assert_", "aten::sym_constrain_range")


def _is_translated(target: Any, registry: Any) -> bool:
    """Whether the exporter translates a call as it is, and the call changes none of its inputs."""
    if isinstance(target, torch._ops.OpOverload):
        if target._schema.name.startswith(_ASSERTIONS):
            return True
        return bool(registry.get_decomps(target)) and not target._schema.is_mutable
    # Arithmetic of sizes, and items of tuples; not what runs graphs within the graph.
    return not isinstance(target, torch._ops.OperatorBase)


@contextlib.contextmanager
def _quick_matching() -> Iterator[None]:
    """Have onnxscript look at a node before it tries a pattern of several ends from it.

    It would sort all of the graph's nodes by type first, at every node: a seventh of the time that
    Stable Diffusion 1.5 takes to export, growing with the square of the nodes.
    """
    try:
        from onnxscript.rewriter import _basics, _matcher

        matcher = _matcher.SimplePatternMatcher
        match, result = matcher.match, _basics.MatchResult
    except (ImportError, AttributeError) as error:
        _warn_of("match quickly", error)
        yield
        return
    moved: list[Exception] = []

    def match_quickly(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if not moved:
            try:
                ends = self.pattern.output_nodes
                if len(ends) > 1 and not ends[0].op.matches(node.op_type):
                    return result().fail("The pattern begins with another operator.")
            except (AttributeError, TypeError) as error:
                moved.append(error)
        return match(self, model, graph, node, **options)

    with _patched(matcher, "match", match_quickly):
        yield
    if moved:
        _warn_of("match quickly", moved[0])


@contextlib.contextmanager
def _patched(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    usual = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, usual)


def _warn_of(what: str, error: Exception) -> None:
    warnings.warn(
        f"this exporter cannot be told to {what} ({first_line(error)}): large models take longer "
        "to export",
        stacklevel=3,
    )
