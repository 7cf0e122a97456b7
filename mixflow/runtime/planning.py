"""From plans to a program: chosen by the planner, confirmed by XLA where there is a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.tree_util import tree_leaves, tree_unflatten

from mixflow.compiler.capture.capture import Captured
from mixflow.compiler.ir.dialects.remarks import DECLINED, Remark
from mixflow.compiler.jaxprs.sizes import OPEN_SIZE
from mixflow.errors import BudgetError
from mixflow.planner.candidates import Candidates
from mixflow.planner.front import Offer, offers
from mixflow.planner.pipeline import Optimised, optimise, parse_passes
from mixflow.planner.plan import Candidate, Wishes, balanced
from mixflow.planner.reasons import declines
from mixflow.planner.search import Planner
from mixflow.runtime.arguments import has_open_sizes
from mixflow.runtime.backend import planning_device
from mixflow.runtime.known_plans import Chosen, KnownPlans
from mixflow.runtime.measure import Measurement, measure, total_bytes
from mixflow.runtime.options import Options
from mixflow.runtime.target import is_meta_loss
from mixflow.units import format_bytes

_MOST_RUNS = 5
_MOST_SHOWN = 4
"""For a budget, XLA compiles so many plans at most."""
_NEAR = 1.1
"""A plan that needs so much of a budget by the estimate may be within it by XLA's account."""

_UNCONFIRMED = Remark(
    "plan",
    DECLINED,
    "sizes are left open, of which XLA compiles nothing: that the plan is within the budget is an "
    f"estimate with {OPEN_SIZE} in the place of each symbol",
    "<unknown>",
)

Jit = Callable[[str], Any]
"""Makes a jitted function of the program by a pipeline's text."""


@dataclass(frozen=True)
class Usage:
    """How a program is called: what its plan depends on beside itself.

    Arguments:
        differentiated: whether somebody may differentiate it from outside.
        sharded: whether its arguments are known to be in parts on several devices.
        loss: whether it is a meta-loss by the types that it returns. One that is differentiated
            from outside is planned for its gradient.
    """

    differentiated: bool = False
    sharded: bool = False
    loss: bool = False

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any], *, differentiated: bool = False) -> Usage:
        """The use with some traced arguments, arrays or `jax.ShapeDtypeStruct`."""
        if jax.device_count() == 1:
            return Usage(differentiated)
        shardings = (getattr(leaf, "sharding", None) for leaf in tree_leaves((args, kwargs)))
        parts = (one is not None and not one.is_fully_replicated for one in shardings)
        return Usage(differentiated, any(parts))

    def of_result(self, captured: Captured, args: tuple[Any, ...]) -> Usage:
        """The same use, knowing what the program returns for these arguments."""
        result = tree_unflatten(captured.out_tree, captured.jaxpr.out_avals)
        return replace(self, loss=is_meta_loss(result, args))


class Chooser:
    """Chooses the plans for one function's programs, and remembers them.

    Arguments:
        name: the function's, for errors.
        budget: bytes for arguments, results and temporaries, or None.
        options: how the function is compiled.
    """

    def __init__(self, name: str, budget: int | None, options: Options) -> None:
        self._name = name
        self._budget = budget
        self._options = options
        settings = (options.assume_symmetric, options.respect_checkpoints, options.roll)
        self._known = KnownPlans((budget, *settings))

    def optimised(self, captured: Captured, use: Usage) -> Optimised:
        """The program by its plan."""
        chosen = self._known.find(captured, use)
        if chosen is None:
            planner = self._planner(captured, use)
            best = planner.best(self._budget)[0]
            chosen = self._choose(captured, use, planner, best)
            self._known.store(captured, use, chosen)
            result = best.optimised
        else:
            passes = parse_passes(chosen.passes)
            result = optimise(captured, passes, differentiated=use.differentiated)
        declines = (*result.declines, *chosen.declines)
        return replace(result, passes=chosen.passes, declines=declines)

    def confirm(
        self,
        captured: Captured,
        use: Usage,
        jit: Jit,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Choose the fastest plan that XLA finds within the budget, of those that it is shown.

        It is shown the fastest by the estimates first. One that needs more than it was estimated to
        need says how far off estimates are here; the next is planned for a budget less so much.

        Raises:
            BudgetError: none is.
        """
        assert self._budget is not None

        def measured(passes: str) -> int:
            return total_bytes(jit(passes).lower(*args, **kwargs).compile())

        known = self._known.load(captured, use)
        if known is not None and measured(known.passes) <= self._budget:
            self._known.add(captured, use, known)
            return
        planner = self._planner(captured, use)
        budget, needed = self._budget, list[int]()
        if use.sharded:
            # Estimates are those of the whole program, and the budget is for each device.
            (reference,) = planner.best()
            budget = int(budget * reference.total_bytes / measured(reference.plan.passes))
        shown = list[Candidate]()
        while len(shown) < _MOST_SHOWN and (found := self._next(planner, budget, shown)):
            shown.append(found)
            needed.append(measured(found.plan.passes))
            if needed[-1] <= self._budget:
                chosen = self._choose(captured, use, planner, found)
                self._known.store(captured, use, chosen)
                return
            budget = int(self._budget * found.total_bytes / needed[-1])
        raise self._over_budget(planner, min(needed))

    def _next(self, planner: Planner, budget: int, shown: list[Candidate]) -> Candidate | None:
        """The next plan to show XLA: the fastest within the budget, and last the least."""
        left = [one for one in planner.best(budget) if one not in shown]
        if left:
            return left[-1] if len(shown) == _MOST_SHOWN - 1 else left[0]
        others = (one for one in planner.candidates.considered if one not in shown)
        near = [one for one in others if one.total_bytes <= _NEAR * budget]
        return min(near, key=lambda one: one.total_bytes, default=None)

    def front(self, captured: Captured, use: Usage) -> tuple[Offer, ...]:
        """What a budget would buy, beside the plan that the program gets."""
        chosen = self.optimised(captured, use).passes
        return offers(self._planner(captured, use), chosen, self._budget)

    def autotune(
        self,
        captured: Captured,
        use: Usage,
        jit: Jit,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Choose by compiling and running the plans that the planner finds worth it.

        With a budget that is the fastest within it; without, the best balance of memory and time.

        Raises:
            BudgetError: no plan is within the budget.
        """
        planner = self._planner(captured, use)
        front = planner.front(self._budget)[:_MOST_RUNS]

        def measured(candidate: Candidate) -> Measurement:
            jitted = jit(candidate.plan.passes)
            return measure(jitted, args, kwargs, run=True, static=self._options.static).measurement

        runs = [(measured(one), one) for one in front]
        within = [run for run in runs if self._budget is None or run[0].total_bytes <= self._budget]
        if not within:
            raise self._over_budget(planner, min(run[0].total_bytes for run in runs))
        best = within[self._best([run[0] for run in within])][1]
        self._choose(captured, use, planner, best)

    def _best(self, runs: list[Measurement]) -> int:
        figures = [(float(run.total_bytes), run.run_s or 0.0) for run in runs]
        if self._budget is None:
            return balanced(figures)
        return min(range(len(runs)), key=lambda position: figures[position][1])

    def _choose(
        self, captured: Captured, use: Usage, planner: Planner, candidate: Candidate
    ) -> Chosen:
        left = declines(planner.candidates, candidate)
        if self._budget is not None and has_open_sizes(captured.jaxpr.in_avals):
            left = (*left, _UNCONFIRMED)
        chosen = Chosen(candidate.plan.passes, left)
        self._known.add(captured, use, chosen)
        return chosen

    def _over_budget(self, planner: Planner, least: int) -> BudgetError:
        """The error for a budget that no plan is within."""
        helps = ["smaller batches"]
        if planner.facts.gradients > 1:
            helps.append("fewer steps")
        if self._options.respect_checkpoints and planner.facts.checkpointed:
            helps.append("respect_checkpoints=False")
        *others, last = helps
        advice = f"{', '.join(others)} or {last}" if others else last
        return BudgetError(
            f"{self._name} is over the budget of {format_bytes(self._budget or 0)}: the least that "
            f"mixflow finds is {format_bytes(least)} of arguments, results and temporaries; "
            f"{advice} would help"
        )

    def _planner(self, captured: Captured, use: Usage) -> Planner:
        device = planning_device(options_are_ours=not use.differentiated)
        avals: list[Any] = captured.jaxpr.in_avals
        # On an explicit mesh types say it, to whoever calls.
        sharded = use.sharded or any(any(aval.sharding.spec) for aval in avals)
        candidates = Candidates(
            captured,
            differentiated=use.differentiated,
            device=device,
            sharded=sharded,
            loss=use.loss,
            wishes=Wishes(self._options.respect_checkpoints, self._options.roll),
        )
        return Planner(candidates)
