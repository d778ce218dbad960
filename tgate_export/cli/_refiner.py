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
    from tgate_export.bundle.manifest import Latents, Manifest
    from tgate_export.runtime.backends.base import BackendOptions
    from tgate_export.runtime.partial_run import Refined
    from tgate_export.runtime.picture_record import PictureRecord
    from tgate_export.runtime.pipeline import PipelineOutput, StepCallback, TGatePipeline
    from tgate_export.runtime.request import Request

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
        base: Latents,
        record: PictureRecord | None,
    ) -> Refiner | None:
        """Return what is asked for; None for a run that one bundle makes.

        Args:
            bundle: the option's.
            start: the option's.
            base: latents of the bundle that begins.
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
        if manifest.latents != base or manifest.latents.video:
            raise InvalidRequestError(
                f"{bundle} has other latents than the bundle that begins: give a refiner of its "
                "model's kind"
            )
        if start is None:
            start = said.get("start", _START)
        return cls(bundle, manifest, start)

    def of_base(self, given: Mapping[str, Any], base: Manifest) -> dict[str, Any]:
        """Return the parameters of the bundle that begins: all but those that this one alone has.

        Args:
            given: parameters of the call, by name.
            base: the bundle that begins.
        """
        only = self._takes() - base.parameters.keys()
        return {name: value for name, value in given.items() if name not in only}

    def ready(
        self,
        begins: Request,
        base: Manifest,
        given: Mapping[str, Any],
        negative_prompt: str | None,
        backend: str,
        options: BackendOptions,
    ) -> Ending:
        """Load the bundle and check its call, before the other one runs.

        What the two bundles both have is of one run: here it is the one that begins whose defaults
        count.

        Args:
            begins: the call of the bundle that begins.
            base: that bundle.
            given: parameters of both, by name.
            negative_prompt: of both.
            backend: a name that `select` takes.
            options: see there.

        Raises:
            InvalidRequestError: this bundle cannot make its part of the run.
        """
        import numpy as np

        from tgate_export.runtime.partial_run import Refined
        from tgate_export.runtime.pipeline import TGatePipeline
        from tgate_export.runtime.request import check_split, make_request
        from tgate_export.runtime.run_plan import RunPlans

        takes, images = self._takes(), begins.images
        of_run = {n: begins.value(n) for n in takes & base.parameters.keys()}
        only = {n: v for n, v in given.items() if n in takes - base.parameters.keys()}
        call: dict[str, Any] = {
            "prompt": list(begins.prompts), "negative_prompt": negative_prompt,
            "seed": begins.seed, "denoising_start": self.start,
        }  # fmt: skip
        pipeline = TGatePipeline.from_bundle(self.bundle, backend, options=options)
        shape = self.manifest.latents.shape(images, begins.height, begins.width)
        request = make_request(
            self.manifest, image=np.zeros(shape, np.float32), **call, **of_run, **only
        )
        check_split(self.manifest, images)
        RunPlans(pipeline.bundle).of(request)
        made = Refined(self.manifest.name, self.start, only)
        return Ending(pipeline, call, of_run | only, made)

    def _takes(self) -> set[str]:
        """Return the parameters that it may be given: its gate is its own."""
        return self.manifest.parameters.keys() - {
            *self.manifest.method.parameters, "image", "strength"
        }  # fmt: skip


@dataclass(frozen=True)
class Ending:
    """A loaded refiner and its checked call.

    Attributes:
        pipeline: the refiner's.
        call: arguments, without the latents that it goes on from.
        parameters: of the bundle, by name.
        made: what the record says of it.
    """

    pipeline: TGatePipeline
    call: Mapping[str, Any]
    parameters: Mapping[str, Any]
    made: Refined

    def refined(self, begun: PipelineOutput, on_step: StepCallback) -> PipelineOutput:
        """Go on from the latents that the other bundle made."""
        output = self.pipeline(
            **self.call, image=begun.images, parameters=self.parameters,
            callback_on_step_end=on_step,
        )  # fmt: skip
        request = replace(begun.request, output_type="pil", refined=self.made)
        return replace(output, timings=begun.timings + output.timings, request=request)
