"""The evaluations that a request makes: its sampler's steps, and the graph of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_file import read_sampler_table
from tgate_export.bundle.sampler_table import SamplerSteps, SamplerTable
from tgate_export.common.errors import BundleError, InvalidRequestError
from tgate_export.runtime.rebuild import check_graphs
from tgate_export.runtime.request import Request
from tgate_export.steps.step_plan import StepPlan, plan_steps


@dataclass(frozen=True, eq=False)
class RunPlan:
    """One evaluation of the denoiser and of the sampler for each timestep, decided beforehand."""

    sampler: SamplerSteps
    step_plan: StepPlan


def step_plan_of(manifest: Manifest, values: Mapping[str, int], sampler: SamplerSteps) -> StepPlan:
    """Return the phase of every evaluation.

    Args:
        manifest: the bundle's.
        values: of its method's parameters.
        sampler: the run's steps.
    """
    return plan_steps(
        manifest.method.rule, manifest.phase_caches, values,
        sampler.num_inference_steps, sampler.extra_evaluations,
    )  # fmt: skip


class RunPlans:
    """Finds them in a bundle's sampler tables, each of which is read once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._tables: dict[str, SamplerTable] = {}

    def table(self, scheduler: str) -> SamplerTable:
        """Return a scheduler's table.

        Raises:
            BundleError: when the file is not a sampler table.
        """
        if scheduler not in self._tables:
            file = self._bundle.manifest.samplers[scheduler].file
            try:
                with self._bundle.reading(file):
                    self._tables[scheduler] = read_sampler_table(self._bundle.file(file))
            except (OSError, ValueError) as error:
                raise BundleError(f"{error}: build the bundle again") from None
        return self._tables[scheduler]

    def of(self, request: Request) -> RunPlan:
        """Return what a request runs.

        Raises:
            InvalidRequestError: a number of steps that the scheduler has no table for, or a graph
                that is not in the bundle.
        """
        try:
            sampler = self.table(request.scheduler).for_steps(request.num_inference_steps)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from None
        if request.begins_with_image and sampler.starts:
            sampler = sampler.starting_at(request.first_step)
        manifest = self._bundle.manifest
        values = {name: request.value(name) for name in manifest.method.parameters}
        step_plan = step_plan_of(manifest, values, sampler)
        check_graphs(self._bundle, step_plan, request)
        return RunPlan(sampler, step_plan)
