"""The schedule of a chain against every schedule there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mixflow.compiler.analysis.schedule import Chain, Schedule, Schedules, find_schedule


def chain_of(rng: Any, units: int, pinned: bool = False) -> Chain:
    """A chain with whole numbers of bytes; some values are read far from where they are born."""
    born = rng.integers(1, 6, units)
    last = np.array([rng.integers(unit + 1, units + 1) for unit in range(units)])
    is_stored = rng.random(units) < 0.5
    crossing = np.zeros((units + 1, units + 1))
    for start, stop in itertools.combinations(range(units + 1), 2):
        inside = range(start, stop)
        crossing[start, stop] = sum(born[unit] for unit in inside if last[unit] >= stop)
    entering = [
        sum(born[unit] for unit in range(cut) if last[unit] >= cut and not is_stored[unit])
        for cut in range(units)
    ]
    saved = born * is_stored + rng.integers(0, 4, units)
    return Chain(
        forward=rng.integers(1, 9, units).astype(float),
        saved=saved.astype(float),
        working=(saved + rng.integers(1, 9, units)).astype(float),
        entering=np.array(entering, float),
        crossing=crossing,
        pinned=rng.random(units) < 0.2 if pinned else np.zeros(units, bool),
    )


def every_schedule(start: int, stop: int) -> Iterator[Schedule]:
    """All ways to keep units or to put runs of them into (nested) checkpoints."""
    if start == stop:
        yield []
        return
    for rest in every_schedule(start + 1, stop):
        yield [start, *rest]
    for end in range(start + 1, stop):  # the last run of a chain is never worth a checkpoint
        for inner, rest in itertools.product(every_schedule(start, end), every_schedule(end, stop)):
            yield [inner, *rest]


def units_of(schedule: Schedule) -> list[int]:
    return [
        unit for part in schedule for unit in ([part] if isinstance(part, int) else units_of(part))
    ]


def cost_of(chain: Chain, schedule: Schedule) -> tuple[float, float]:
    """What a schedule reruns, and its peak, by going through it step by step."""
    rerun, peak, stored = 0.0, 0.0, 0.0
    is_entry_stored = True
    for place, part in enumerate(schedule):
        is_last = place == len(schedule) - 1
        if isinstance(part, int):
            peak = max(peak, stored + chain.working[part])
            stored += 0 if is_last else chain.saved[part]
            is_entry_stored = False
            continue
        units = units_of(part)
        stored += 0 if is_entry_stored else chain.entering[units[0]]
        inner_rerun, inner_peak = cost_of(chain, part)
        rerun += inner_rerun + chain.forward[units].sum()
        peak = max(peak, stored + inner_peak)
        stored += chain.crossing[units[0], units[-1] + 1]
        is_entry_stored = True
        if chain.pinned[units].any():
            return np.inf, np.inf
    return rerun, peak


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("pinned", [False, True])
def test_no_schedule_is_cheaper_at_any_limit(seed: int, pinned: bool) -> None:
    chain = chain_of(np.random.default_rng(seed), units=5, pinned=pinned)
    every = [(cost_of(chain, one), one) for one in every_schedule(0, len(chain))]
    # As many levels as bytes: nothing is rounded.
    schedules = Schedules(chain, levels=int(chain.most))
    for limit in range(1, int(chain.most) + 1):
        least = min((rerun for (rerun, peak), _ in every if peak <= limit), default=np.inf)
        found = schedules.best(limit)
        if found is None:
            assert least == np.inf
            continue
        rerun, peak = cost_of(chain, found)
        assert peak <= limit
        assert rerun == least
        assert units_of(found) == list(range(len(chain)))


def test_the_front_is_what_the_schedules_cost() -> None:
    chain = chain_of(np.random.default_rng(3), units=6)
    schedules = Schedules(chain, levels=int(chain.most))
    front = schedules.front()
    assert len(front) > 2
    for memory, rerun in front:
        schedule = schedules.best(memory)
        assert schedule is not None
        assert cost_of(chain, schedule) == (rerun, memory)
        assert schedules.best(memory - 1) != schedule


@pytest.mark.parametrize("seed", range(6))
def test_rounding_to_levels_never_takes_more_than_the_limit(seed: int) -> None:
    chain = chain_of(np.random.default_rng(seed), units=6)
    schedules = Schedules(chain, levels=7)  # a level is several bytes
    for limit in np.linspace(1, chain.most, 20):
        found = schedules.best(float(limit))
        if found is not None:
            assert cost_of(chain, found)[1] <= limit


def test_keeping_everything_costs_nothing() -> None:
    chain = chain_of(np.random.default_rng(0), units=30)
    assert find_schedule(chain, slack=chain.most) == list(range(30))


def test_what_may_run_again_is_bounded() -> None:
    chain = chain_of(np.random.default_rng(1), units=30)
    once, thrice = (cost_of(chain, find_schedule(chain, rerun=rerun)) for rerun in (1.0, 3.0))
    assert once[0] <= chain.forward.sum() < thrice[0] <= 3 * chain.forward.sum()
    assert thrice[1] < once[1]


def test_a_chain_of_nothing() -> None:
    nothing = np.zeros(0)
    chain = Chain(nothing, nothing, nothing, nothing, np.zeros((1, 1)), np.zeros(0, bool))
    assert find_schedule(chain) == []
