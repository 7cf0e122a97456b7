"""What a budget would buy: the plans that no other one beats in both memory and time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mixflow.planner.plan import Candidate
from mixflow.planner.search import Planner

PLAIN, STEP, CHOSEN = "plain JAX", "checkpointed step", "chosen"


@dataclass(frozen=True)
class Offer:
    """A plan that can be had, by mixflow's estimates.

    Arguments:
        total_bytes: arguments, results and temporaries at the peak; a budget counts the same.
        time: of one run, as a share of plain JAX's.
        passes: the plan's text, as `passes=` takes it.
        names: what it is, of `PLAIN`, `STEP` and `CHOSEN`; none for others of the front.
    """

    total_bytes: float
    time: float
    passes: str
    names: tuple[str, ...] = ()


def _is_needless(one: Candidate, others: Iterable[Candidate]) -> bool:
    """Whether another plan does less to the program and is as good, as far as estimates tell."""
    simpler = (other for other in others if len(other.plan.passes) < len(one.plan.passes))
    return any(other.is_as_good(one) for other in simpler)


def offers(planner: Planner, chosen: str, budget: int | None = None) -> tuple[Offer, ...]:
    """A program's front, the most memory first; plain JAX and a checkpointed step with it.

    Arguments:
        planner: the program's.
        chosen: the text of the plan that it gets.
        budget: what that was chosen for, bytes.
    """
    if not planner.facts.nested:
        return ()
    front = planner.front(budget)
    plain = planner.candidate(planner.candidates.plain)
    known = {PLAIN: plain, STEP: planner.candidate(planner.step)}
    taken = [one for one in planner.candidates.considered if one.plan.passes == chosen]

    def named(one: Candidate) -> tuple[str, ...]:
        names = tuple(name for name, other in known.items() if one is other)
        return (*names[:1], *((CHOSEN,) if one in taken else ()))

    others = [one for one in front if not _is_needless(one, [*front, *taken])]
    shown = {one.plan: one for one in (*known.values(), *taken, *others)}.values()
    unit = plain.seconds or 1.0  # nobody knows how long a program with a `while` takes
    return tuple(
        Offer(one.total_bytes, one.seconds / unit, one.plan.passes, named(one))
        for one in sorted(shown, key=lambda one: -one.total_bytes)
    )
