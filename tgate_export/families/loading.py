"""A pipeline's parts, loaded from safetensors or made from their configuration alone."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tgate_export.adapters.apply import apply_loras
from tgate_export.adapters.token_embeddings import add_vectors
from tgate_export.bundle.manifest_graphs import Precision
from tgate_export.common.errors import ModelError, first_line
from tgate_export.families.embeddings import add_tokens
from tgate_export.families.random_tokenizers import random_tokenizer
from tgate_export.families.source import ModelSource
from tgate_export.families.spec import TokenizerSpec
from tgate_export.families.staging import plain_config, staged_tokenizer, staged_weights
from tgate_export.families.tokenizer_files import check_words

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
RANDOM_SEED = 0


@dataclass
class Components:
    """A loaded pipeline: the parts that end up in a bundle.

    Attributes:
        modules: those with weights, by component; all of them, or those that are needed.
        tokenizers: by the graph input that takes their ids.
        precision: of the weights.
    """

    modules: dict[str, nn.Module]
    tokenizers: dict[str, Any]
    precision: Precision

    def __getitem__(self, component: str) -> nn.Module:
        return self.modules[component]


def component_precision(source: ModelSource, component: str, precision: Precision) -> Precision:
    """Return the precision of a component's weights and computation in a bundle."""
    if component == "vae" and source.family.vae_upcast and source.config("vae").get("force_upcast"):
        return "fp32"
    return precision


def load(
    source: ModelSource, precision: Precision, components: Collection[str] | None = None
) -> Components:
    """Load a pipeline's parts, in evaluation mode, without gradients.

    Every weight is made or read in its final precision: there is never a second copy.

    Args:
        source: the pipeline.
        precision: of the weights.
        components: those to load; when not given all of them, and the tokenizers.

    Raises:
        ModelError: when a weight file cannot be read or does not fit its configuration.
    """
    _quiet_libraries()
    modules = {
        component: load_component(
            source, component, component_precision(source, component, precision)
        )
        for component in source.family.weights
        if components is None or component in components
    }
    tokenizers = (
        {spec.input: load_tokenizer(source, spec) for spec in source.family.tokenizers(source)}
        if components is None
        else {}
    )
    return Components(modules, tokenizers, precision)


def load_tokenizer(source: ModelSource, spec: TokenizerSpec) -> Any:
    """Load a tokenizer, as `load` does, with the tokens of the model's textual inversions.

    Raises:
        ModelError: when its files cannot be read.
        InvalidRequestError: when it has one of these tokens already.
    """
    return _with_tokens(source, spec)[0]


def _with_tokens(source: ModelSource, spec: TokenizerSpec) -> tuple[Any, dict[str, int]]:
    """Return a tokenizer, and the ids of the tokens that textual inversions add to it."""
    if source.kind == "random":
        tokenizer = random_tokenizer(spec, source)
    else:
        tokenizer = _tokenizer(source, spec.component, spec.class_name)
    return tokenizer, add_tokens(tokenizer, source.embeddings)


def load_component(source: ModelSource, component: str, precision: Precision) -> nn.Module:
    """Load one part with weights, as `load` does, and change it as the model's other files say.

    Those are LoRA files, and textual inversions.

    Raises:
        ModelError: when a weight file cannot be read or does not fit its configuration, or another
            file does not fit it.
        InvalidRequestError: a textual inversion's token is one of the tokenizer's own.
    """
    dtype = TORCH_DTYPES[precision]
    cls = _class(source.weights[component])
    if source.kind == "random":
        make = _random
    else:
        make = _pretrained if source.part(component) is None else _of_file
    module: nn.Module = make(cls, source, component, dtype)
    convert(module.eval().requires_grad_(False), dtype)
    apply_loras(module, component, source.loras)
    for spec in source.family.tokenizers(source) if source.embeddings else ():
        if spec.encoder == component:
            _, ids = _with_tokens(source, spec)
            add_vectors(module, component, source.embeddings, ids)
    return module


def convert(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a module in place, one tensor at a time.

    What transformers says must stay in fp32 (`_keep_in_fp32_modules`) does: T5 overflows in fp16
    where its feed-forward layers end.
    """
    keep = frozenset(getattr(module, "_keep_in_fp32_modules", None) or ())
    for path, part in module.named_modules():
        wanted = torch.float32 if keep.intersection(path.split(".")) else dtype
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(wanted)
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_floating_point():
                # A new tensor: a view (PixArt's position embedding) would keep its base's type.
                setattr(part, name, buffer.to(wanted))
    return module


def float32_layers(module: nn.Module) -> int:
    """Count the linear layers of a module that `convert` left in fp32."""
    layers = (part for part in module.modules() if isinstance(part, nn.Linear))
    return sum(layer.weight.dtype == torch.float32 for layer in layers)


@contextmanager
def computing_in_fp32(*modules: nn.Module) -> Iterator[None]:
    """Compute in fp32 while the weights stay as they are stored.

    Every layer gets fp32 copies of its weights when its turn comes, and its own back after it:
    only one layer at a time is in memory twice. Not for modules that read the dtype of another's
    weights, as a VAE does.
    """
    hooks: list[Any] = []
    phases: list[tuple[Any, torch.dtype]] = []
    for layer in itertools.chain.from_iterable(module.modules() for module in modules):
        computed_in = getattr(layer, "compute_dtype", None)
        if isinstance(computed_in, torch.dtype):
            phases.append((layer, computed_in))
        weights = [] if any(True for _ in layer.children()) else list(layer.parameters())
        if any(weight.dtype != torch.float32 for weight in weights):
            widened = _Widened(weights)
            hooks.append(layer.register_forward_pre_hook(widened.before))
            hooks.append(layer.register_forward_hook(widened.after))
    for phase, _ in phases:
        phase.compute_dtype = torch.float32
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for phase, dtype in phases:
            phase.compute_dtype = dtype


class _Widened:
    """The hooks of one layer: fp32 copies of its weights before it runs, the stored ones after."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.weights = weights
        self.stored: list[torch.Tensor] = []

    def before(self, _layer: nn.Module, _args: Any) -> None:
        self.stored = [weight.data for weight in self.weights]
        for weight in self.weights:
            weight.data = weight.data.float()

    def after(self, _layer: nn.Module, _args: Any, _output: Any) -> None:
        for weight, data in zip(self.weights, self.stored, strict=True):
            weight.data = data
        self.stored = []


def _class(name: str) -> Any:
    library, _, attribute = name.partition(".")
    return getattr(importlib.import_module(library), attribute)


def _quiet_libraries() -> None:
    """Leave progress and warnings to this package's own."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _pretrained(cls: Any, source: ModelSource, component: str, dtype: torch.dtype) -> Any:
    folder = source.folder(component)
    dtype_argument = "torch_dtype" if cls.__module__.startswith("diffusers") else "dtype"
    with staged_weights(source, component, cls) as staged:
        try:
            model, report = cls.from_pretrained(
                staged,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
                **{dtype_argument: dtype},
            )
        except Exception as error:  # the libraries' own for a damaged file are of many classes
            reason = first_line(error).replace(str(staged), str(folder))
            raise ModelError(f"cannot load {folder}: {reason}") from error
    if missing := sorted(report["missing_keys"]):  # would be random numbers
        raise ModelError(
            f"the weights in {folder} lack {missing[0]} "
            f"({len(missing)} in all): download the model again"
        )
    return model


def _of_file(cls: Any, source: ModelSource, component: str, dtype: torch.dtype) -> Any:
    from tgate_export.families.checkpoint_weights import load_part

    part = source.part(component)
    assert part is not None  # the caller's choice
    return load_part(cls, part, plain_config(cls, source.config(component)), dtype)


def _random(cls: Any, source: ModelSource, component: str, dtype: torch.dtype) -> Any:
    """Build the exact architecture with random weights, made in `dtype`.

    They depend on nothing but the component's own configuration.
    """
    config = plain_config(cls, source.config(component))
    with _default_dtype(dtype), torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        if cls.__module__.startswith("diffusers"):
            return cls.from_config(config)
        return cls(cls.config_class(**config))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _tokenizer(source: ModelSource, component: str, class_name: str) -> Any:
    folder = source.folder(component)
    if not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model")):
        try:
            importlib.import_module("sentencepiece")
        except ImportError:
            raise ModelError(
                f"{folder} holds a SentencePiece vocabulary: pip install sentencepiece to read it"
            ) from None
    try:
        with staged_tokenizer(source, component) as staged:
            tokenizer = _class(class_name).from_pretrained(staged, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"cannot load {folder}: {first_line(error)}") from error
    check_words(folder, tokenizer)
    return tokenizer
