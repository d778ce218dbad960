"""What a pipeline says that it is made of, refused in one line before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import ModelError
from tgate_export.families.model_files import check_file, foreign_format, read_json

if TYPE_CHECKING:
    from tgate_export.families.source import ModelSource

# `model_type` of the configurations of transformers' classes; a whole CLIP's has them inside.
MODEL_TYPES = {
    "CLIPTextModel": "clip_text_model",
    "CLIPTextModelWithProjection": "clip_text_model",
    "CLIPVisionModelWithProjection": "clip_vision_model",
    "T5EncoderModel": "t5",
}
_INNER = {"clip_text_model": "text_config", "clip_vision_model": "vision_config"}

# Schedulers over the usual 1000 betas, whose configurations fit one another, and EDM's. Those of
# flow matching and of consistency models know other times and other noise.
SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep",
        "DPMSolverMultistep", "DPMSolverSDE", "DPMSolverSinglestep", "EDMDPMSolverMultistep",
        "EDMEuler", "EulerAncestralDiscrete",
        "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM",
        "LMSDiscrete", "PNDM", "SASolver", "TCD", "UniPCMultistep",
    )
)  # fmt: skip
# Whole numbers that sizes and graphs are computed from.
_NUMBERS = (
    "in_channels", "out_channels", "latent_channels", "addition_time_embed_dim", "patch_size",
    "projection_class_embeddings_input_dim", "num_frames", "time_cond_proj_dim", "caption_channels",
    "hidden_size", "projection_dim", "num_hidden_layers", "max_position_embeddings", "vocab_size",
    "d_model", "image_size", "num_class_embeds",
)  # fmt: skip


def pipeline_class(directory: Path, model: str, names: Collection[str]) -> str:
    """Return the class that `model_index.json` names.

    Args:
        directory: the model.
        model: what the user asked for, for messages.
        names: its files, here or on the hub.

    Raises:
        ModelError: no diffusers pipeline, or one whose code lies in the folder.
    """
    if not (directory / "model_index.json").is_file():
        raise ModelError(f"{model} is not a diffusers pipeline: {_instead(directory, names)}")
    check_file(directory, directory / "model_index.json")
    pipeline = read_json(directory / "model_index.json").get("_class_name")
    if isinstance(pipeline, list) and len(pipeline) == 2:
        raise ModelError(
            f"{model} is a {pipeline[1]} of its own file {pipeline[0]}.py: code of a model's "
            "folder is never run, so that custom pipelines are not supported"
        )
    if not isinstance(pipeline, str):
        raise ModelError(
            f"{model} is not a diffusers pipeline: its model_index.json names no class"
        )
    return pipeline


def _instead(directory: Path, names: Collection[str]) -> str:
    """Say what a folder without `model_index.json` is, and what to do about it."""
    if "manifest.json" in names and (directory / "graphs").is_dir():
        return "it is a bundle that was built already; build takes the model that it came from"
    if "config.json" in names and (directory / "config.json").is_file():
        check_file(directory, directory / "config.json")
        config = read_json(directory / "config.json")
        kind = config.get("_class_name") or config.get("architectures") or config.get("model_type")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if isinstance(kind, str):
            return (
                f"it is a {kind} alone; put it in a pipeline (BASE.from_pretrained(..., unet=...) "
                "for a UNet), save that with save_pretrained(FOLDER), and build the folder"
            )
    if any("lora" in name.lower() or name == "adapter_config.json" for name in names):
        return (
            "it is a LoRA; build the model that it was made for, which takes the LoRA's file as "
            "`loras`"
        )
    if {"snapshots", "blobs"} <= set(names):
        return "it is a repository of the hub's cache; give one of the folders in its snapshots/"
    single = sorted(name for name in names if name.endswith((".safetensors", ".ckpt")))
    if single:
        return f"it has no model_index.json but {single[0]}; give that file itself"
    return "it has no model_index.json (save one with pipeline.save_pretrained(FOLDER))"


def inner_config(config: dict[str, Any], class_name: str | None) -> dict[str, Any]:
    """Return a component's part of a configuration that may be a whole CLIP's.

    Args:
        config: the content of `config.json`.
        class_name: "library.Class" of the component, None for one without weights.
    """
    kind = MODEL_TYPES.get((class_name or "").rpartition(".")[2], "")
    inner = config.get(_INNER.get(kind, ""))
    return inner if config.get("model_type") == "clip" and isinstance(inner, dict) else config


def check_components(source: ModelSource, listing: Callable[[str], Collection[str]]) -> None:
    """Check that a pipeline's components are those that its family is built from.

    Args:
        source: the pipeline.
        listing: names the files of a component's folder, here or on the hub.

    Raises:
        ModelError: names the component, what it is, and what was expected or what to do.
    """
    index = source.index()
    expected = {**source.family.weights, "scheduler": "diffusers.scheduler"}
    expected |= dict.fromkeys(source.family.extras, "")
    if source.vae:
        expected.pop("vae")
    for component, class_name in expected.items():
        _check_component(source, component, class_name, index, listing)
    if source.kind != "random":
        for spec in source.family.tokenizers(source):
            _check_component(source, spec.component, spec.class_name, index, listing)
    for component, class_name in source.weights.items():
        _check_config(source, component, class_name)
    predicted = source.config("scheduler").get("prediction_type", "epsilon")
    known = get_args(Manifest.model_fields["prediction_type"].annotation)
    if predicted not in known:
        raise ModelError(
            f"{source.model}: scheduler/scheduler_config.json has prediction_type {predicted!r}, "
            f"which is not supported: supported are {', '.join(known)}"
        )


def _check_component(
    source: ModelSource,
    component: str,
    class_name: str,
    index: dict[str, Any],
    listing: Callable[[str], Collection[str]],
) -> None:
    if class_name and index.get(component) is not None:
        _check_entry(source, component, class_name, index[component])
    if source.folder(component).is_dir():
        return
    # Optimum's exports have `vae_decoder` in place of `vae`.
    denoiser = source.family.denoiser
    if exported := foreign_format(listing(denoiser)):
        raise ModelError(
            f"{source.model} was exported to {exported} already ({denoiser}/): build from the "
            "PyTorch model that it was made from, in safetensors"
        )
    raise ModelError(f"{source.model} lacks the component {component}/: download it again")


def _check_entry(source: ModelSource, component: str, class_name: str, entry: Any) -> None:
    """Check an entry of `model_index.json`, [library, class]."""
    if not isinstance(entry, list) or len(entry) != 2:
        raise ModelError(
            f"{source.model}: model_index.json has {entry!r} for {component}, expected a library "
            "and a class"
        )
    library, name = entry
    if name is None:
        raise ModelError(
            f"{source.model} comes without its {component}, which has to be built in: save the "
            "pipeline with it (save_pretrained(FOLDER))"
        )
    wanted_library, _, wanted = class_name.partition(".")
    if wanted == "scheduler":
        if library == wanted_library and name in SCHEDULERS:
            return
        raise ModelError(
            f"{source.model}: its scheduler is a {name}, whose times and noise are not those of "
            "the samplers here, and which is not supported"
        )
    allowed = {wanted, f"{wanted}Fast"} if "Tokenizer" in wanted else {wanted}
    if library == wanted_library and (name in allowed or _renamed(source, component, name)):
        return
    raise ModelError(
        f"{source.model}: its {component} is a {name} of {library}, expected a {wanted} of "
        f"{wanted_library}, which a {source.pipeline} is built from"
    )


def _renamed(source: ModelSource, component: str, name: Any) -> bool:
    """PixArt's transformer was once a case of a more general class, which diffusers still reads."""
    return (
        component == "transformer"
        and name == "Transformer2DModel"
        and source.config(component).get("norm_type") == "ada_norm_single"
    )


def _check_config(source: ModelSource, component: str, class_name: str) -> None:
    config = source.config(component)
    where = f"{source.model}: {component}/config.json"
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            how = config[key].get("quant_method") if isinstance(config[key], dict) else None
            raise ModelError(
                f"{where} says that its weights are quantised ({how or key}): build from the "
                "weights in fp32, bf16 or fp16"
            )
    if (source.folder(component) / "adapter_config.json").exists():
        raise ModelError(
            f"{source.model}: {component}/ has an adapter beside its weights "
            "(adapter_config.json): merge it, and save the pipeline again"
        )
    library, _, wanted = class_name.partition(".")
    name = config.get("_class_name") if library == "diffusers" else config.get("model_type")
    right = wanted if library == "diffusers" else MODEL_TYPES[wanted]
    if name not in (None, "", right) and not _renamed(source, component, name):
        raise ModelError(
            f"{where} describes a {name}, expected a {wanted}, which a {source.pipeline} is built "
            "from"
        )
    for key in _NUMBERS:
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ModelError(f"{where}: {key} is {value!r}, expected a whole number")
    widths = config.get("cross_attention_dim")
    if isinstance(widths, list) and len({str(width) for width in widths}) != 1:
        raise ModelError(
            f"{where}: cross_attention_dim is {widths!r}: one text of several widths is not "
            "supported"
        )
