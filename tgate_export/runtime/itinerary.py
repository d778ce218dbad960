"""The evaluations that a request makes: its solver's steps, and the graph of each."""

from __future__ import annotations

from dataclasses import dataclass

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.solver_file import read_solver_table
from tgate_export.bundle.solver_table import SolverSteps, SolverTable
from tgate_export.errors import BundleError, InvalidRequestError
from tgate_export.runtime.rebuild import check_graphs
from tgate_export.runtime.request import Request
from tgate_export.schedule import Schedule, gate_schedule


@dataclass(frozen=True, eq=False)
class Itinerary:
    """One evaluation of the denoiser and of the solver for each timestep, decided beforehand."""

    solver: SolverSteps
    schedule: Schedule


class Itineraries:
    """Finds them in a bundle's solver tables, each of which is read once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._tables: dict[str, SolverTable] = {}

    def table(self, scheduler: str) -> SolverTable:
        """Return a scheduler's table.

        Raises:
            BundleError: when the file is not a solver table.
        """
        if scheduler not in self._tables:
            file = self._bundle.manifest.solvers[scheduler].file
            try:
                with self._bundle.reading(file):
                    self._tables[scheduler] = read_solver_table(self._bundle.file(file))
            except (OSError, ValueError) as error:
                raise BundleError(f"{error}: build the bundle again") from None
        return self._tables[scheduler]

    def of(self, request: Request) -> Itinerary:
        """Return what a request runs.

        Raises:
            InvalidRequestError: a number of steps that the scheduler has no table for, or a graph
                that is not in the bundle.
        """
        try:
            solver = self.table(request.scheduler).for_steps(request.num_inference_steps)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from None
        if request.image is not None and solver.starts:
            solver = solver.starting_at(request.first_step)
        schedule = gate_schedule(
            solver.num_inference_steps,
            request.gate_step,
            solver.extra_evaluations,
            sp_interval=request.sp_interval,
            fi_interval=request.fi_interval,
            warm_up=request.warm_up,
        )
        check_graphs(self._bundle, schedule, request)
        return Itinerary(solver, schedule)
