"""The evaluations that a request makes: its sampler's steps, and the graph of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_file import read_sampler_table
from tgate_export.bundle.sampler_table import SamplerSteps, SamplerTable
from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError
from tgate_export.runtime.compiled_samplers import compile_table, scheduler_config
from tgate_export.runtime.rebuild import check_graphs
from tgate_export.runtime.request import Request
from tgate_export.runtime.sampler_choice import has_starts
from tgate_export.steps.step_plan import StepPlan, plan_steps

_TRAINED = 1000  # timesteps of a model whose configuration does not say
_MOST_COMPILED = 200  # tables of one number of steps that are kept in memory


@dataclass(frozen=True, eq=False)
class RunPlan:
    """One evaluation of the denoiser and of the sampler for each timestep, decided beforehand."""

    sampler: SamplerSteps
    step_plan: StepPlan


@dataclass(frozen=True, eq=False)
class Pass:
    """One of the runs that a request takes, one after another; see `Request.passes`.

    Attributes:
        request: the run.
        run_plan: its evaluations.
        earlier: evaluations of the passes before it.
        later: phases of the passes after it.
    """

    request: Request
    run_plan: RunPlan
    earlier: int = 0
    later: tuple[str, ...] = ()

    def after(self, made: np.ndarray, downscale: int) -> Pass:
        """Return it with what the pass before it made; see `Request.after`."""
        return replace(self, request=self.request.after(made, downscale))


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


def _no_step(name: str, part: float, request: Request) -> InvalidRequestError:
    return InvalidRequestError(
        f"{name} {part:g} of {request.num_inference_steps} steps leaves no step to run: change one "
        "of them",
        field=name,
    )


class RunPlans:
    """Finds them in a bundle's sampler tables, each of which is read once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._tables: dict[str, SamplerTable] = {}
        self._compiled: dict[tuple[str, int, bool], SamplerTable] = {}  # that the bundle lacks

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

    def _table_for(self, scheduler: str, steps: int, *, starts: bool) -> SamplerTable:
        """Return a table that has a number of steps, if the scheduler can have it.

        Args:
            scheduler: its name.
            steps: how many.
            starts: whether it has to have runs that begin at a later step, too.
        """
        with_starts = has_starts(self._bundle.manifest)
        if scheduler in self._bundle.manifest.samplers and (with_starts or not starts):
            return self.table(scheduler)
        key = scheduler, steps, starts
        table = self._compiled.get(key)
        if table is None:
            table = compile_table(self._bundle, scheduler, steps, starts=starts or with_starts)
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
            table = self._table_for(
                request.scheduler,
                request.num_inference_steps,
                starts=request.begins_with_image and not request.encodes_image,
            )
            sampler = table.for_steps(request.num_inference_steps)
        except TGateError:
            raise
        except ValueError as error:
            raise InvalidRequestError(str(error)) from None
        if request.begins_with_image and sampler.starts:
            sampler = self._begun(request, sampler)
        if request.denoising_end is not None:
            end = sampler.evaluations_until(self._timestep(request.denoising_end))
            if not end or sampler.step_of_evaluation[end - 1] < 0:
                raise _no_step("denoising_end", request.denoising_end, request)
            sampler = sampler.ending_before(end)
        manifest = self._bundle.manifest
        values = {name: request.value(name) for name in manifest.method.parameters}
        step_plan = step_plan_of(manifest, values, sampler)
        check_graphs(self._bundle, step_plan, request)
        return RunPlan(sampler, step_plan)

    def _begun(self, request: Request, sampler: SamplerSteps) -> SamplerSteps:
        """Return the run that begins with an image."""
        start = request.denoising_start
        if start is None:
            return sampler.starting_at(request.first_step)
        steps = sampler.step_of_evaluation
        first = sampler.evaluations_until(self._timestep(start))
        # PNDM's runs have two evaluations or more: there is none that begins at its last.
        if first == len(steps) or steps[first] - steps[0] >= len(sampler.starts):
            raise _no_step("denoising_start", start, request)
        return sampler.starting_at(steps[first] - steps[0], noised=True)

    def _timestep(self, part: float) -> int:
        """Return the training step that a part of a run ends at, as diffusers rounds it."""
        trained = int(scheduler_config(self._bundle).get("num_train_timesteps", _TRAINED))
        return round(trained - part * trained)

    def of_passes(self, request: Request) -> tuple[Pass, ...]:
        """Return a request's passes, one after another; see `of`."""
        requests = request.passes
        plans = [self.of(each) for each in requests]
        phases = [plan.step_plan.phases for plan in plans]
        return tuple(
            Pass(
                each, plan,
                earlier=sum(map(len, phases[:number])),
                later=tuple(phase for others in phases[number + 1 :] for phase in others),
            )
            for number, (each, plan) in enumerate(zip(requests, plans, strict=True))
        )  # fmt: skip
