"""Budgets on the reference program: honoured by XLA's own figure, or refused with the least."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jax

import mixflow
from benchmarks.reference import Size, arguments, meta_loss
from mixflow.runtime.measure import total_bytes
from mixflow.runtime.sides import CHECKPOINTED_STEP


def budgets(sizes: list[Size], task: str) -> Iterator[dict[str, Any]]:
    """For each size: a budget between two extremes, and one that nothing fits.

    Each has, in bytes of arguments, results and temporaries: default_bytes of mixflow without a
    budget, step_bytes of plain JAX with a checkpointed step; budget_bytes halfway between the two
    (their geometric mean), needed_bytes by XLA's account of the program for it, and whether that is
    within; and refused, the error for a quarter of default_bytes.
    """
    for size in sizes:
        loss = jax.value_and_grad(meta_loss(size, task))
        args = arguments(size, task)
        default = _needed(loss, args)
        step = _needed(loss, args, passes=CHECKPOINTED_STEP)
        budget = math.isqrt(default * step)
        needed = _needed(loss, args, memory_budget=budget)
        yield {
            "size": asdict(size),
            "task": task,
            "default_bytes": default,
            "step_bytes": step,
            "budget_bytes": budget,
            "needed_bytes": needed,
            "within": needed <= budget,
            "refused": _refusal(loss, args, default // 4),
        }


def _needed(loss: Any, args: tuple[Any, ...], **options: Any) -> int:
    jax.clear_caches()
    return total_bytes(mixflow.compile(loss, **options).lower(*args).compile())


def _refusal(loss: Any, args: tuple[Any, ...], budget: int) -> str | None:
    try:
        _needed(loss, args, memory_budget=budget)
    except mixflow.BudgetError as error:
        return str(error)
    return None
