"""A straight-line block as a chain of units."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from support import captures

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.analysis.chains import MAX_UNITS, is_pinned, line_of
from mixflow.compiler.ir.emitter import main_function
from mixflow.planner.pipeline import optimise, parse_passes

X = jnp.linspace(0.1, 1.0, 4)


def unrolled(steps: int) -> Any:
    def meta(eta: Any) -> Any:
        theta = X
        for _ in range(steps):
            theta = theta - 0.1 * jax.grad(lambda t: jnp.sum(jnp.tanh(t * eta)))(theta)
        return jnp.sum(theta**2)

    return optimise(captures(meta, X), parse_passes("canonicalize"), differentiated=True).module


def line_of_steps(steps: int) -> Any:
    function = main_function(unrolled(steps))
    return line_of(function.body.block, find_activity(function).values, order=1)


def test_of_few_gradient_steps_each_is_a_unit():
    line = line_of_steps(6)
    assert sum(any(map(is_pinned, unit)) for unit in line.units) == 6
    assert all(len(unit) == 1 for unit in line.units if any(map(is_pinned, unit)))


def test_many_gradient_steps_are_no_more_units_than_a_schedule_can_take():
    """The schedule's time grows as n³: 200 steps as 400 units took it 25 s."""
    line = line_of_steps(150)
    assert MAX_UNITS // 4 < len(line.units) <= MAX_UNITS + 2
    pinned = [any(map(is_pinned, unit)) for unit in line.units]
    assert line.chain.pinned.tolist() == pinned
    assert sum(is_pinned(op) for unit in line.units for op in unit) == 150
