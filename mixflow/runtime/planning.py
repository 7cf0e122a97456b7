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
from mixflow.compiler.jaxprs.subprograms import nested_jaxprs
from mixflow.errors import BudgetError
from mixflow.planner.pipeline import Optimised, optimise, parse_passes
from mixflow.planner.plan import Candidate, balanced
from mixflow.planner.search import Planner
from mixflow.runtime.arguments import has_open_sizes
from mixflow.runtime.backend import planning_device
from mixflow.runtime.measure import Measurement, measure, total_bytes
from mixflow.runtime.target import is_meta_loss
from mixflow.units import format_bytes

_MOST_RUNS = 5
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
class Chosen:
    """The plan for a program.

    Arguments:
        passes: its pipeline.
        declines: what the planner decided against.
    """

    passes: str
    declines: tuple[Remark, ...]


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
        static: the jit options that say what of the arguments is static.
    """

    def __init__(self, name: str, budget: int | None, static: dict[str, Any]) -> None:
        self._name = name
        self._budget = budget
        self._static = static
        self._found: dict[Any, Chosen] = {}

    def optimised(self, captured: Captured, use: Usage) -> Optimised:
        """The program by its plan."""
        key = _key(captured, use)
        if key in self._found:
            passes = parse_passes(self._found[key].passes)
            result = optimise(captured, passes, differentiated=use.differentiated)
        else:
            planner = _planner(captured, use)
            best = planner.best(self._budget)[0]
            self._choose(captured, use, planner, best)
            result = best.optimised
        chosen = self._found[key]
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
        """Choose the first of the planner's finalists that XLA finds within the budget.

        Raises:
            BudgetError: none is.
        """
        assert self._budget is not None
        planner = _planner(captured, use)

        def measured(candidate: Candidate) -> int:
            return total_bytes(jit(candidate.plan.passes).lower(*args, **kwargs).compile())

        budget, needed = self._budget, list[int]()
        if use.sharded:
            # Estimates are those of the whole program, and the budget is for each device.
            (reference,) = planner.best()
            budget = int(budget * reference.total_bytes / measured(reference))
        for candidate in planner.best(budget):
            needed.append(measured(candidate))
            if needed[-1] <= self._budget:
                self._choose(captured, use, planner, candidate)
                return
        raise over_budget(self._name, self._budget, min(needed))

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
        planner = _planner(captured, use)
        front = planner.front(self._budget)[:_MOST_RUNS]

        def measured(candidate: Candidate) -> Measurement:
            jitted = jit(candidate.plan.passes)
            return measure(jitted, args, kwargs, run=True, static=self._static).measurement

        runs = [(measured(one), one) for one in front]
        within = [run for run in runs if self._budget is None or run[0].total_bytes <= self._budget]
        if not within:
            raise over_budget(
                self._name, self._budget or 0, min(run[0].total_bytes for run in runs)
            )
        best = within[self._best([run[0] for run in within])][1]
        self._choose(captured, use, planner, best)

    def _best(self, runs: list[Measurement]) -> int:
        figures = [(float(run.total_bytes), run.run_s or 0.0) for run in runs]
        if self._budget is None:
            return balanced(figures)
        return min(range(len(runs)), key=lambda position: figures[position][1])

    def _choose(
        self, captured: Captured, use: Usage, planner: Planner, candidate: Candidate
    ) -> None:
        declines = planner.declines(candidate)
        if self._budget is not None and has_open_sizes(captured.jaxpr.in_avals):
            declines = (*declines, _UNCONFIRMED)
        self._found[_key(captured, use)] = Chosen(candidate.plan.passes, declines)


def over_budget(name: str, budget: int, least: int) -> BudgetError:
    """The error for a budget that no plan is within."""
    return BudgetError(
        f"{name} is over the budget of {format_bytes(budget)}: the least that mixflow finds is "
        f"{format_bytes(least)} of arguments, results and temporaries; smaller batches or fewer "
        "steps would help"
    )


def _planner(captured: Captured, use: Usage) -> Planner:
    device = planning_device(options_are_ours=not use.differentiated)
    # On an explicit mesh types say it, to whoever calls.
    sharded = use.sharded or any(map(_is_in_parts, captured.jaxpr.in_avals))
    return Planner(
        captured,
        differentiated=use.differentiated,
        device=device,
        sharded=sharded,
        loss=use.loss,
    )


def _is_in_parts(aval: Any) -> bool:
    return any(aval.sharding.spec)


def _key(captured: Captured, use: Usage) -> Any:
    """Equal for programs that look alike; a plan is right for any program."""
    return use, tuple(captured.jaxpr.in_avals), _outline(captured.jaxpr.jaxpr)


def _outline(jaxpr: Any) -> tuple[Any, ...]:
    """A program's operations with the types of their results, and how long its loops are."""
    return tuple(
        (
            eqn.primitive,
            eqn.params.get("length"),
            tuple(var.aval for var in eqn.outvars),
            tuple(map(_outline, nested_jaxprs(eqn))),
        )
        for eqn in jaxpr.eqns
    )
