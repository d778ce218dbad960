"""The evaluations that a request makes: its sampler's steps, and the graph of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_file import read_sampler_table
from tgate_export.bundle.sampler_table import SamplerSteps, SamplerTable
from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError
from tgate_export.runtime.compiled_samplers import compile_table
from tgate_export.runtime.rebuild import check_graphs
from tgate_export.runtime.request import Request
from tgate_export.steps.step_plan import StepPlan, plan_steps

_MOST_COMPILED = 200  # tables of one number of steps that are kept in memory


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
        sampler.step_of_evaluation,
    )  # fmt: skip


class RunPlans:
    """Finds them in a bundle's sampler tables, each of which is read once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._tables: dict[str, SamplerTable] = {}
        self._compiled: dict[tuple[str, int], SamplerTable] = {}  # that the bundle lacks

    def table(self, scheduler: str) -> SamplerTable:
        """Return the table of a scheduler that the bundle has.

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

    def _table_for(self, scheduler: str, steps: int) -> SamplerTable:
        """Return a table that has a number of steps, if the scheduler can have it."""
        if scheduler in self._bundle.manifest.samplers:
            return self.table(scheduler)
        key = scheduler, steps
        table = self._compiled.get(key)
        if table is None:
            table = compile_table(self._bundle, scheduler, steps)
            if len(self._compiled) < _MOST_COMPILED:  # others come from the user's cache
                self._compiled[key] = table
        return table

    def of(self, request: Request) -> RunPlan:
        """Return what a request runs.

        Raises:
            InvalidRequestError: a number of steps that the scheduler has no table for, a scheduler
                or a graph that is not in the bundle.
            TGateError: the scheduler is not in the bundle, and compiling it failed.
        """
        try:
            table = self._table_for(request.scheduler, request.num_inference_steps)
            sampler = table.for_steps(request.num_inference_steps)
        except TGateError:
            raise
        except ValueError as error:
            raise InvalidRequestError(str(error)) from None
        if request.begins_with_image and sampler.starts:
            sampler = sampler.starting_at(request.first_step)
        manifest = self._bundle.manifest
        values = {name: request.value(name) for name in manifest.method.parameters}
        step_plan = step_plan_of(manifest, values, sampler)
        check_graphs(self._bundle, step_plan, request)
        return RunPlan(sampler, step_plan)
