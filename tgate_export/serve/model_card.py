"""What a server says of a model."""

from __future__ import annotations

from typing import Any

from tgate_export.serve.pool import Model


def model_card(model: Model) -> dict[str, Any]:
    """Return an entry of OpenAI's list of models; what is ours lies under `tgate`."""
    manifest = model.manifest
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tgate-export",
        "tgate": {
            "family": manifest.family,
            "loaded": model.batcher is not None,
            "image_to_image": "image" in manifest.parameters,
            "video": manifest.latents.video,
            "negative_prompt": manifest.takes_negative,
            "size": manifest.size.model_dump(mode="json"),
            "schedulers": {name: each.max_steps for name, each in manifest.samplers.items()},
            "parameters": {
                name: entry.model_dump(mode="json") for name, entry in manifest.parameters.items()
            },
        },
    }
