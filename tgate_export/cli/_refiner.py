"""`--refiner`: what one bundle begins, another one ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tgate_export.cli._types import BundlePath
from tgate_export.common.errors import InvalidRequestError

if TYPE_CHECKING:
    from tgate_export.bundle.manifest import Manifest
    from tgate_export.runtime.backends.base import BackendOptions
    from tgate_export.runtime.picture_record import PictureRecord
    from tgate_export.runtime.pipeline import PipelineOutput

_START = 0.8  # what SDXL's was trained for is the last fifth

REFINER_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--refiner",
        type=BundlePath(),
        help="Bundle of SDXL's refiner, or of any model with the same latents, that goes on from "
        "this one's latents for the last steps. Each has its own default gate, among its own "
        "steps; --gate-step is this one's.",
    ),
    click.option(
        "--refiner-start",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help=f"Of --refiner: part of the run after which it goes on. Default: {_START}.",
    ),
)


@dataclass(frozen=True)
class Refiner:
    """The bundle that goes on.

    Attributes:
        bundle: its folder.
        manifest: it.
        start: part of the run after which it goes on.
    """

    bundle: Path
    manifest: Manifest
    start: float

    @classmethod
    def of(
        cls,
        bundle: Path | None,
        start: float | None,
        base: Manifest,
        record: PictureRecord | None,
    ) -> Refiner | None:
        """Return what is asked for; None for a run that one bundle makes.

        Args:
            bundle: the option's.
            start: the option's.
            base: the bundle that begins.
            record: of a picture that is made again.

        Raises:
            click.UsageError: an option has no effect.
            InvalidRequestError: the bundle cannot go on from the other one, or is to be named.
        """
        said = record.refiner if record is not None else {}
        if bundle is None:
            if said:
                raise InvalidRequestError(
                    f"the picture was refined by {said['model']!r}: name its bundle with --refiner"
                )
            if start is not None:
                raise click.UsageError("--refiner-start is for --refiner BUNDLE")
            return None
        from tgate_export.bundle.integrity import read_manifest

        manifest = read_manifest(bundle)
        if manifest.latents != base.latents or manifest.latents.video:
            raise InvalidRequestError(
                f"{bundle} has other latents than the bundle that begins: give a refiner of its "
                "model's kind"
            )
        if start is None:
            start = said.get("start", _START)
        return cls(bundle, manifest, start)

    def divided(self, given: Mapping[str, Any], base: Manifest) -> tuple[dict[str, Any], ...]:
        """Return the parameters of the bundle that begins, and of this one.

        Args:
            given: parameters of the call, by name.
            base: the bundle that begins.
        """
        own = self.manifest.parameters.keys()
        only = own - base.parameters.keys()
        left_out = {*self.manifest.method.parameters, "image", "strength"}
        return (
            {name: value for name, value in given.items() if name not in only},
            {name: value for name, value in given.items() if name in own - left_out},
        )

    def refined(
        self,
        begun: PipelineOutput,
        backend: str,
        options: BackendOptions,
        base: Manifest,
        **call: Any,
    ) -> PipelineOutput:
        """Go on from latents.

        Args:
            begun: what the other bundle made.
            backend: a name that `select` takes.
            options: see there.
            base: the other bundle.
            **call: arguments of the pipeline but those that follow from what was begun.
        """
        from tgate_export.runtime.partial_run import Refined
        from tgate_export.runtime.pipeline import PipelineOutput, TGatePipeline

        pipeline = TGatePipeline.from_bundle(self.bundle, backend, options=options)
        first = begun.request
        parameters = call.pop("parameters")
        output = pipeline(
            list(first.prompts),
            image=begun.images,
            denoising_start=self.start,
            seed=first.seed,
            parameters=parameters,
            **call,
        )
        only = {n: v for n, v in parameters.items() if n not in base.parameters}
        made = Refined(self.manifest.name, self.start, only)
        request = replace(first, output_type="pil", refined=made)
        return PipelineOutput(output.images, begun.timings + output.timings, request)
