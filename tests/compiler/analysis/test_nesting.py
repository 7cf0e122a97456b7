"""How T steps are nested in K levels, against the least that any schedule needs (Revolve)."""

from __future__ import annotations

import math

import pytest

from mixflow.compiler.analysis.nesting import choose_nest


@pytest.mark.parametrize(
    ("steps", "depth", "text"),
    [
        (1024, 1, "1024"),
        (1024, 2, "32 x 32"),
        (1000, 2, "40 x 25"),
        (1000, 3, "10 x 10 x 10"),
        (64, 3, "4 x 4 x 4"),
        (12, 2, "4 x 3"),
        (13, 2, "4 x 3 + 1"),
        (7, 2, "3 x 2 + 1"),
        (1009, 2, "32 x 31 + 17"),
        (97, 3, "4 x 5 x 4 + 4 x 4 + 1"),
        (1, 3, "1"),
        (3, 2, "3"),
        (4, 2, "4"),  # 2 x 2 holds as many states
        (0, 2, "0"),
    ],
)
def test_a_nest(steps, depth, text):
    assert str(choose_nest(steps, depth)) == text


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_a_nest_takes_every_step_in_the_least_memory_of_its_kind(depth):
    for steps in [*range(1, 200), 1009, 4096, 10007]:
        nest = choose_nest(steps, depth)
        assert nest.steps == steps
        assert 1 <= nest.levels <= depth
        assert nest.states <= choose_nest(steps, max(depth - 1, 1)).states
        # A factorisation may cost a quarter more, and whole numbers up to one for each level.
        assert nest.states <= 1.25 * nest.levels * (steps ** (1 / nest.levels) + 1)
        assert steps <= nest.forwards <= nest.levels * steps


def revolve(steps, states):
    """The least forward steps that reverse a number of them with so many stored states.

    Griewank and Walther (2000), Proposition 1: the state before the first step counts, and a
    step's own recomputation in its backward pass does not.
    """
    r = next(r for r in range(steps + 1) if steps <= math.comb(states + r, r))
    return r * steps - math.comb(states + r, r - 1) if r else 0


def slow_revolve(steps, states):
    """The same by trying every place for the next stored state."""
    if states == 1 or steps == 1:
        return steps * (steps - 1) // 2
    return min(
        first + slow_revolve(steps - first, states - 1) + slow_revolve(first, states)
        for first in range(1, steps)
    )


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_bound_is_revolve_s(steps):
    for states in (1, 2, 3, 4):
        assert revolve(steps, states) == slow_revolve(steps, states)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_no_nest_beats_revolve(depth):
    for steps in [*range(1, 200), 1009, 4096]:
        nest = choose_nest(steps, depth)
        assert nest.forwards >= revolve(steps, nest.states)
