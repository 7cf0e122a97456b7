"""What a chain saves and what it reruns: the best persistent schedule under a memory limit.

A chain is a straight-line program cut into units. Going back through it needs, for each unit,
what its derivative reads. A schedule either saves that (the unit runs once), or saves no more
than the inputs of a run of units and reruns them, by a schedule of their own, when the
backward pass gets there. Runs nest, as `jax.checkpoint` does.

Source: Beaumont et al., "Optimal Checkpointing for Heterogeneous Chains" (2019,
arXiv 1911.13214), theorem 1, with inputs that cross several cuts counted once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Schedule = list["int | Schedule"]
"""Units in order; those in a nested list are one checkpoint."""

LEVELS = 160
"""Into how many amounts the memory limit is divided; each need is rounded up to the next."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of n units.

    Arguments:
        forward: the cost of running each unit, shape (n,), in any unit.
        saved: bytes that each unit saves if it is not to be rerun, shape (n,).
        working: bytes that going forward and back through each unit needs on top of what lies
            saved before it, its own included, shape (n,).
        entering: bytes that cross the cut before each unit and that no unit saves, shape (n,).
        crossing: at [s, t] the bytes born in the units s … t−1 that something after them reads,
            shape (n + 1, n + 1).
        pinned: whether a unit must not be rerun, shape (n,).
    """

    forward: Array
    saved: Array
    working: Array
    entering: Array
    crossing: Array
    pinned: Array

    def __len__(self) -> int:
        return len(self.forward)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self._figures == other._figures

    def __hash__(self) -> int:
        return hash(self._figures)

    @cached_property
    def _figures(self) -> tuple[bytes, ...]:
        arrays = self.forward, self.saved, self.working, self.entering, self.crossing, self.pinned
        return tuple(array.tobytes() for array in arrays)

    @property
    def most(self) -> float:
        """Bytes at the peak when every unit is saved."""
        before = np.concatenate([[0.0], np.cumsum(self.saved)[:-1]])
        return float(np.max(before + self.working, initial=0.0))


class Schedules:
    """The best schedules of a chain for every memory limit up to one, found at once.

    Arguments:
        chain: the chain.
        limit: bytes; by default what saving everything takes.
    """

    def __init__(self, chain: Chain, limit: float | None = None, levels: int = LEVELS) -> None:
        self._chain = chain
        most = chain.most if limit is None else min(limit, chain.most)
        self._grain = max(most / levels, 1e-9)
        # Where everything is to be saved, each unit may have been rounded up by one.
        self._levels = levels + (len(chain) if most == chain.most else 0)
        self._total = np.concatenate([[0.0], np.cumsum(chain.forward)])
        # cost[e, s, t, m]: the least cost of reruns that takes units s … t−1 back within m grains;
        # e is 1 where what enters at s is not saved yet, because the unit before it was saved.
        self._cost = np.full((2, len(chain) + 1, len(chain) + 1, self._levels + 1), np.inf)
        self._memory = np.arange(self._levels + 1)[None]
        self._crossing = self._grains(chain.crossing)
        self._solve()

    def front(self) -> list[tuple[float, float]]:
        """What memory buys: (bytes, cost of what is rerun), the least memory first."""
        costs = self._cost[0, 0, len(self._chain)]
        before = np.minimum.accumulate(np.concatenate([[np.inf], costs[:-1]]))
        return [(m * self._grain, float(costs[m])) for m in np.flatnonzero(costs < before)]

    def best(self, limit: float) -> Schedule | None:
        """The cheapest schedule within `limit` bytes; None where there is none."""
        memory = min(int(limit / self._grain + 1e-6), self._levels)
        if not np.isfinite(self._cost[0, 0, len(self._chain), memory]):
            return None
        return self._schedule(0, 0, len(self._chain), memory)

    def _grains(self, count: Array | float) -> Any:
        return np.ceil(np.asarray(count) / self._grain - 1e-6).astype(int)

    def _solve(self) -> None:
        n = len(self._chain)
        for length in range(1, n + 1):
            for start in range(n - length + 1):
                stop = start + length
                saving = self._save_first(start, stop)
                rerun = self._rerun_first(start, stop).min(0, initial=np.inf)
                # If the unit before was saved, what enters here is not saved yet: a checkpoint that
                # starts here has to store it, on top of all else.
                late = self._less(rerun, self._chain.entering[start])
                self._cost[0, start, stop] = np.minimum(saving, rerun)
                self._cost[1, start, stop] = np.minimum(saving, late)

    def _save_first(self, start: int, stop: int) -> Array:
        """Cost by memory of saving the first unit; the last alone needs no more than itself."""
        needs = self._grains(self._chain.working[start])
        rest = np.zeros(self._levels + 1)
        if stop - start > 1:
            rest = self._less(self._cost[1, start + 1, stop], self._chain.saved[start])
        return np.where(np.arange(self._levels + 1) >= needs, rest, np.inf)

    def _rerun_first(self, start: int, stop: int) -> Array:
        """Cost by memory of checkpointing units start … k−1, a row for each k not pinned."""
        ends = self._ends(start, stop)
        memory = self._memory - self._crossing[start, ends][:, None]
        rest = self._cost[0, ends[:, None], stop, np.maximum(memory, 0)]
        again = (self._total[ends] - self._total[start])[:, None] + self._cost[0, start, ends]
        return again + np.where(memory >= 0, rest, np.inf)

    def _ends(self, start: int, stop: int) -> Array:
        # A checkpoint ends before the first pinned unit; and the last run of a chain is taken back
        # at once, so a checkpoint around it would run it twice for nothing.
        pinned = np.flatnonzero(self._chain.pinned[start:stop])
        last = start + int(pinned[0]) if len(pinned) else stop - 1
        return np.arange(start + 1, min(last, stop - 1) + 1)

    def _less(self, costs: Array, count: float) -> Array:
        """The costs by memory (the last axis) as they are when `count` bytes of it are taken."""
        taken = min(int(self._grains(count)), self._levels + 1)
        lost = np.full((*costs.shape[:-1], taken), np.inf)
        return np.concatenate([lost, costs[..., : self._levels + 1 - taken]], -1)

    def _schedule(self, entering: int, start: int, stop: int, memory: int) -> Schedule:
        found: Schedule = []
        while start < stop:
            saving = self._save_first(start, stop)[memory]
            left = memory - int(self._grains(self._chain.entering[start])) * entering
            rerun = self._rerun_first(start, stop)[:, left] if left >= 0 else np.array([np.inf])
            if saving <= rerun.min(initial=np.inf):
                found.append(start)
                memory -= int(self._grains(self._chain.saved[start])) if stop - start > 1 else 0
                start, entering = start + 1, 1
                continue
            end = int(self._ends(start, stop)[int(rerun.argmin())])
            found.append(self._schedule(0, start, end, left))
            memory = left - int(self._crossing[start, end])
            start, entering = end, 0
        return found


@lru_cache(maxsize=64)  # the plans of a program cut the same losses
def find_schedule(chain: Chain, slack: float = 0, rerun: float = 1.0) -> Schedule:
    """The cheapest schedule within the least memory and a slack.

    Arguments:
        chain: the chain.
        slack: bytes beyond the least.
        rerun: how much may be rerun for less memory, as a multiple of the cost of running
            what may be rerun once. It bounds what "the least" means.
    """
    if not len(chain):
        return []
    bearable = rerun * float(chain.forward[~chain.pinned].sum())
    # A first guess, doubled until a schedule fits: the less memory a table is for, the finer it is.
    limit = 2.5 * float(chain.working.max())
    while not (within := _memories(schedules := Schedules(chain, limit), bearable)):
        limit *= 2
    if within[0] + slack > limit:
        schedules = Schedules(chain, within[0] + slack)
    found = schedules.best(within[0] + slack)
    assert found is not None
    return found


def _memories(schedules: Schedules, bearable: float) -> list[float]:
    """Bytes of the schedules that run no more than `bearable` again, the least first."""
    return [memory for memory, cost in schedules.front() if cost <= bearable]
