"""What makes torch's exporter take half of its time; graphs are the same with and without.

These are internals of torch and onnxscript: where they are no more, a warning says so and exports
take their time.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from tgate_export.common.errors import first_line


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Let `torch.onnx.export` take less time."""
    quick = (_one_registry, _known_values, _few_decompositions, _quick_matching,
             _without_traces, _without_garbage_collection)  # fmt: skip
    with contextlib.ExitStack() as stack:
        for way in quick:
            stack.enter_context(way())
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
def _without_traces() -> Iterator[None]:
    """Let no line of source be looked up for each call: they are dropped in the end."""
    try:
        from torch.fx import config

        _ = config.do_not_emit_stack_traces
    except (ImportError, AttributeError) as error:
        _warn_of("leave stack traces out", error)
        yield
        return
    with patched(config, "do_not_emit_stack_traces", True):
        yield


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Let the list of translations be made once in a process: it takes a third of a second."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        usual = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError) as error:
        _warn_of("read its translations once", error)
        yield
        return

    def from_known(opset_version: int) -> Any:
        if opset_version not in _REGISTRIES:
            _REGISTRIES[opset_version] = usual(opset_version)
        known = _REGISTRIES[opset_version]
        registry = copy.copy(known)
        # An export adds translations of its own to the lists.
        registry.functions = {target: [*found] for target, found in known.functions.items()}
        return registry

    with patched(ONNXRegistry, "from_torchlib", staticmethod(from_known)):
        yield


_REGISTRIES: dict[int, Any] = {}


@contextlib.contextmanager
def _known_values() -> Iterator[None]:
    """Let the pass that writes casts out take results from the trace: an eighth faster.

    It would run every call once more to know its result's type and shape, which the trace wrote
    down. What the pass changes it still runs.
    """
    try:
        from torch.onnx._internal.fx.passes import type_promotion

        interpreter = type_promotion._TypePromotionInterpreter
        rule_of, run = type_promotion.get_type_promotion_rule, interpreter.run_node
        _ = interpreter._set_current_node, interpreter._maybe_promote_node
    except (ImportError, AttributeError) as error:
        _warn_of("run no call twice", error)
        yield
        return

    def run_node(self: Any, node: Any) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return run(self, node)
        if rule := rule_of(node, self.type_promotion_table):
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    with patched(interpreter, "run_node", run_node):
        yield


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

    with patched(passes, "decompose_with_registry", decompose_if_needed):
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
    """Have onnxscript look at a node before it tries a pattern from it.

    For a pattern of several ends it would sort all of the graph's nodes by type first, at every
    node: a seventh of the time that Stable Diffusion 1.5 takes to export, growing with the square
    of the nodes. For others it makes four objects to say no.
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
    no_match = result().fail("The pattern ends with another operator.")

    def match_quickly(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if not moved:
            try:
                ends = self.pattern.output_nodes
                if not ends[0].op.matches(node.op_type):
                    return no_match
            except (AttributeError, TypeError) as error:
                moved.append(error)
        return match(self, model, graph, node, **options)

    with patched(matcher, "match", match_quickly):
        yield
    if moved:
        _warn_of("match quickly", moved[0])


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give something of another library another value while the block runs."""
    usual = vars(owner)[name]  # as it is written: a class method is bound when it is asked for
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
