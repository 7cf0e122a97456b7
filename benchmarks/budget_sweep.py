"""Ten budgets for a program, from the least to plain JAX's, against plans that are forced on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

import mixflow
from benchmarks.estimates import Subject
from benchmarks.turns import cpu_ratio, cpu_seconds
from mixflow.errors import BudgetError
from mixflow.planner.pipeline import PREPARE, ROLLED
from mixflow.runtime.measure import total_bytes

Row = dict[str, Any]

BUDGETS = 10
"""How many budgets, each the same factor above the one before."""

ROUNDS = 5
"""Runs of a program; the fastest counts."""

_RULES = ("", "forward-over-reverse,reverse-over-forward,")
_STEPS = ("", *(f"checkpoint-inner-loop{{levels={levels}}}," for levels in (1, 2, 3)))
_SAVED = ("", "save-inner-gradients,", "save-inner-gradients{levels=1},")
_SEGMENTS = ("", "segment-loss", "segment-loss{slack=0}", "segment-loss{slack=0 rerun=3.0}")


def forced_plans() -> list[str]:
    """Plans that are tried on any program, as `mixflow.compile(passes=...)` takes them."""
    parts = product((PREPARE, ROLLED), _RULES, _STEPS, _SAVED, _SEGMENTS)
    return [
        f"{first},{rule}{steps}{saved}{segments}".rstrip(",")
        for first, rule, steps, saved, segments in parts
        if rule or not saved
    ]


@dataclass(frozen=True)
class Made:
    """A program that XLA has compiled.

    Arguments:
        plan: the passes that it was made by; empty where that is not known.
        bytes: of arguments, results and temporaries.
        run: runs it once.
    """

    plan: str
    bytes: int
    run: Callable[[], Any]


def budget_sweep(subject: Subject) -> Row:
    """For ten budgets what a program needs, and its CPU time against the best plan that fits.

    Arguments:
        subject: the program and its arguments.

    Returns:
        "program"; "plain_bytes"; "least_bytes" of all forced plans; "least_ratio", the least that
        the planner makes to that; and for each budget in "budgets": "budget_bytes",
        "needed_bytes" (None where it was refused), "cpu_ratio" to the fastest forced plan within
        the budget, and that "plan".
    """
    args = jax.tree.map(jnp.asarray, subject.args)
    forced = list(_forced(subject.gradient, args))
    plain = _compiled(jax.jit(subject.gradient).lower(*args), args)
    least = min(one.bytes for one in forced)
    ours = _least(subject.gradient, args, least)
    start = max(ours.bytes, least)
    ratio = (plain.bytes / start) ** (1 / (BUDGETS - 1)) if plain.bytes > start else 1.0
    budgets = [int(start * ratio**step) + 1 for step in range(BUDGETS)]
    return {
        "program": subject.name.partition(".")[0],
        "plain_bytes": plain.bytes,
        "least_bytes": least,
        "least_ratio": ours.bytes / least,
        "budgets": [_within(subject.gradient, args, budget, forced) for budget in budgets],
    }


def is_within(row: Row) -> bool:
    """Whether one of the budgets in a row was kept."""
    return row["needed_bytes"] is not None and row["needed_bytes"] <= row["budget_bytes"]


def _forced(gradient: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[Made]:
    """Every program that a forced plan comes to, once."""
    texts = set[str]()
    for plan in forced_plans():
        lowered = mixflow.compile(gradient, passes=plan).lower(*args)
        if (text := lowered.as_text()) not in texts:
            texts.add(text)
            yield _compiled(lowered, args, plan)


def _compiled(lowered: Any, args: tuple[Any, ...], plan: str = "") -> Made:
    program = lowered.compile()
    return Made(plan, total_bytes(program), partial(program, *args))


def _least(gradient: Callable[..., Any], args: tuple[Any, ...], least: int) -> Made:
    """The program for the smallest budget that is not refused, in steps of 1%."""
    budget = least
    while True:
        try:
            return _compiled(mixflow.compile(gradient, memory_budget=budget).lower(*args), args)
        except BudgetError:
            budget += max(budget // 100, 1)


def _within(
    gradient: Callable[..., Any], args: tuple[Any, ...], budget: int, forced: list[Made]
) -> Row:
    fitting = [one for one in forced if one.bytes <= budget]
    row: Row = {"budget_bytes": budget, "needed_bytes": None, "cpu_ratio": None, "plan": None}
    try:
        ours = _compiled(mixflow.compile(gradient, memory_budget=budget).lower(*args), args)
    except BudgetError:
        return row
    best = min(fitting, key=lambda one: min(cpu_seconds(one.run) for _ in range(2)))
    ratio = cpu_ratio(ours.run, best.run, ROUNDS)
    return row | {"needed_bytes": ours.bytes, "cpu_ratio": ratio, "plan": best.plan}
