"""A valid manifest of a bundle that nobody built, to be changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tgate_export.bundle.manifest_reader import parse_manifest
from tgate_export.common.errors import BundleError

WHERE = Path("bundle/manifest.json")
ONE = {"min": 1, "opt": 1, "max": 1}
SIDE = {"min": 16, "opt": 16, "max": 16}
GRAPH = {
    "file": "graphs/full.onnx",
    "weights": "graphs/denoiser.weights",
    "precision": "fp32",
    "float32_attention": False,
    "float32_layers": 0,
    "parameters": 12,
    "tiles": None,
    "inputs": [
        {
            "name": "sample",
            "dtype": "float32",
            "shape": ["batch", 4, 8, 8],
            "from": {"loop": "sample"},
        },
        {
            "name": "prompt_embeds",
            "dtype": "float32",
            "shape": ["batch", 77, 32],
            "from": {
                "graph": "text_encoder",
                "output": "prompt_embeds",
                "of": "prompt",
                "chunks": 1,
            },
        },
        {
            "name": "negative_prompt_embeds",
            "dtype": "float32",
            "shape": ["batch", 77, 32],
            "from": {
                "graph": "text_encoder",
                "output": "prompt_embeds",
                "of": "negative_prompt",
                "chunks": 1,
            },
        },
        {
            "name": "guidance_scale",
            "dtype": "float32",
            "shape": ["batch"],
            "from": {"parameter": "guidance_scale"},
        },
    ],
    "outputs": [
        {"name": "noise_pred", "dtype": "float32", "shape": ["batch", 4, 8, 8]},
        {"name": "cross_cache_0", "dtype": "float32", "shape": ["batch", 1, 64, 32]},
    ],
}
ENCODER = GRAPH | {
    "file": "graphs/text_encoder.onnx",
    "weights": None,
    "inputs": [
        {
            "name": "input_ids",
            "dtype": "int64",
            "shape": ["batch", 77],
            "from": {"tokens": "input_ids"},
        }
    ],
    "outputs": [{"name": "prompt_embeds", "dtype": "float32", "shape": ["batch", 77, 32]}],
}
FILE = {"sha256": "0" * 64, "bytes": 3}
VALID: dict[str, Any] = {
    "schema_version": 2,
    "schema_minor": 1,
    "requires": [],
    "name": "tiny",
    "family": "stable-diffusion",
    "source": {
        "kind": "local", "model": "tiny", "revision": None, "fingerprint": "f",
        "config": None, "vae": None, "loras": [], "embeddings": [],
    },
    "precision": "fp32",
    "build_key": "k",
    "prediction_type": "epsilon",
    "batch": ONE,
    "size": {"height": SIDE, "width": SIDE, "multiple": 2},
    "latents": {"channels": 4, "downscale": 2, "frames": None},
    "parameters": {
        "num_inference_steps": {"type": "integer", "default": 25, "min": 1},
        "gate_step": {"type": "integer", "default": 10, "min": 1, "scaled": True},
        "sp_interval": {"type": "integer", "default": 1, "min": 1},
        "fi_interval": {"type": "integer", "default": 1, "min": 1},
        "warm_up": {"type": "integer", "default": 0, "min": 0},
        "scheduler": {"type": "choice", "default": "ddim", "choices": ["ddim"]},
        "guidance_scale": {"type": "number", "default": 7.5, "per": "prompt"},
    },
    "tokenizers": {
        "input_ids": {
            "file": "tokenizer/tokenizer.json", "max_length": 77, "pad_token_id": 1,
            "eos_token_id": 1, "columns": [0, 32],
        },
    },
    "guidance": "classifier-free",
    "absent_negative_prompt": "empty",
    "graphs": {"full": GRAPH, "text_encoder": ENCODER},
    "methods": {
        "tgate": {
            "parameters": ["gate_step", "sp_interval", "fi_interval", "warm_up"],
            "at_least": {"gate_step": "warm_up"},
            "rule": [
                {
                    "phase": "gated",
                    "all": [{"op": ">=", "parameter": "gate_step"}],
                },
                {"phase": "full", "all": []},
            ],
        }
    },
    "caches": {
        "cross_cache_0": {
            "dtype": "float32", "shape": ["batch", 1, 64, 32], "kind": "cross_cache",
            "layers": ["mid"],
        }
    },
    "dimensions": {},
    "samplers": {
        "ddim": {
            "file": "samplers/ddim.json", "scheduler_class": "DDIMScheduler",
            "extra_evaluations": 0, "max_steps": 100,
        }
    },
    "versions": {"torch": "2"},
    "files": {
        "graphs/full.onnx": FILE,
        "graphs/denoiser.weights": FILE,
        "graphs/text_encoder.onnx": FILE,
        "samplers/ddim.json": FILE,
        "tokenizer/tokenizer.json": FILE,
    },
}  # fmt: skip


def changed(keys: str, value: Any) -> dict[str, Any]:
    """The valid manifest with one field replaced; keys are separated by `|`."""
    raw = copy.deepcopy(VALID)
    *parents, last = keys.split("|")
    inner: Any = raw
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last] = value
    return raw


def refused(raw: Any) -> str:
    with pytest.raises(BundleError) as caught:
        parse_manifest(raw if isinstance(raw, str) else json.dumps(raw), WHERE)
    message = str(caught.value)
    assert "\n" not in message
    assert str(WHERE) in message
    return message


# Paths of files that would lie outside the bundle, or that have a plainer form.
ESCAPES = [
    "../x",
    "/etc/passwd",
    "a/../../b",
    "a\\b",
    "..\\x",
    "",
    ".",
    "..",
    "a/./b",
    "a//b",
    "a\0b",
]
