"""How a bundle is built again with something that it lacks."""

from __future__ import annotations

from collections.abc import Mapping

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest import DEFAULT_BATCH, Manifest
from tgate_export.bundle.sampler_names import EDM, USUAL
from tgate_export.bundle.tiles import default_tile
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.hints import Build
from tgate_export.runtime.request import Request
from tgate_export.steps.step_plan import StepPlan

# What a build sets the defaults of, besides the parameters of the rule.
_NUMBERS = ("cache_blend", "guidance_carry")


def check_graphs(bundle: Bundle, step_plan: StepPlan, request: Request) -> None:
    """Refuse a call whose graphs are not all in the bundle.

    Raises:
        InvalidRequestError: says how to build the missing one.
    """
    if request.encodes_image and "vae_encoder" not in bundle.manifest.graphs:
        name = "image" if request.hires is None else f"hires_upscaler {request.hires.upscaler}"
        raise InvalidRequestError(
            f"{name}: this bundle was built without image-to-image",
            "build it with: ",
            rebuild(bundle, image_to_image=True),
        )
    method, graphs = bundle.manifest.method, bundle.manifest.graphs
    # Steps are divided by the argument of `build_bundle` that adds a phase's graph.
    dividing = {
        comparison.modulo
        for guard in method.rule
        for comparison in guard.all
        if guard.phase in step_plan.phases and guard.phase not in graphs
    }
    lacking = {name: request.value(name) for name in method.parameters if name in dividing}
    if lacking:
        settings = " and ".join(f"{option} {value}" for option, value in lacking.items())
        raise InvalidRequestError(
            f"{settings}: this bundle was built without the graphs that reuse self-attention like "
            "that",
            "build it with them: ",
            rebuild(bundle, **lacking),
        )


def _vae_tile(manifest: Manifest) -> int | None:
    """Return the argument of a build, where it is not the default for the bundle's size."""
    usual = default_tile(manifest.size.height.max, manifest.size.width.max)
    return None if manifest.vae_tile == usual else manifest.vae_tile


def rebuild(bundle: Bundle, plans: Mapping[str, object] | None = None, **changes: object) -> Build:
    """Return the call that builds the bundle again, with some arguments changed.

    Args:
        bundle: an open bundle.
        plans: arguments of the `PlanRequest` of plans to compile, too; they are for the batch of
            the graphs, if that is not the default.
        **changes: arguments of `build_bundle`; of `samplers`, what comes to those that there are.
    """
    manifest = bundle.manifest
    usual = {*USUAL, *EDM, manifest.defaults.scheduler}
    samplers = [name for name in manifest.samplers if name not in usual]
    if "samplers" in changes:
        samplers.append(str(changes.pop("samplers")))
    arguments: dict[str, object] = {
        "model": manifest.source.model,
        "config": manifest.source.config,
        "vae": manifest.source.vae,
        "loras": manifest.source.given_loras() or None,
        "embeddings": manifest.source.given_embeddings() or None,
        "weights": "random" if manifest.source.kind == "random" else "pretrained",
        "precision": manifest.precision,
        "size": (manifest.size.width, manifest.size.height),
        # Without a batch, graphs take the default range and plans a single image.
        "batch": None if manifest.batch == DEFAULT_BATCH else manifest.batch,
        **{
            name: manifest.parameters[name].default
            for name in (*manifest.method.parameters, *_NUMBERS)
            if name in manifest.parameters
        },
        "out": bundle.path,
        "guidance": "none" if manifest.guidance == "none" else None,
        "image_to_image": True
        if "vae_encoder" in manifest.graphs and manifest.takes_prompt
        else None,
        "vae_tile": _vae_tile(manifest),
        "samplers": ",".join(samplers) or None,
        "prompt_chunks": manifest.prompt_chunks if manifest.prompt_chunks > 1 else None,
        "prompt_syntax": "a1111"
        if "prompt_syntax" in manifest.parameters
        and manifest.parameters["prompt_syntax"].default == "a1111"
        else None,
        **changes,
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    batch = {"batch": given["batch"]} if "batch" in given else {}
    return Build(given, {**plans, **batch} if plans else {})
