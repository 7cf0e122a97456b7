"""Where equations are repeated: windows of equal kinds, one after the other.

Twelve layers that are unrolled in Python, or three hundred gradient steps, stand in a program as

    a b c d   a b c d   a b c d   …

where a letter is an equation's kind: what it does, with which parameters and types, whatever it
reads. The first layer often differs from the others (a mask that all of them read is made there),
so a run begins where the letters begin to repeat. It may as well begin at b, and end after the last
a: it is turned so that the fewest values cross from one window to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PERIODS = 8
"""How many periods are tried: the commonest distances from a kind to its next place. Layers inside
of gradient steps have two."""

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Run:
    """Windows of equations that are of the same kinds.

    Arguments:
        start: the place of the first equation.
        period: how many equations a window has.
        count: how many windows there are.
    """

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        """The place after the last window."""
        return self.start + self.period * self.count

    @property
    def windows(self) -> list[range]:
        """The places of the equations of each window."""
        starts = range(self.start, self.stop, self.period)
        return [range(start, start + self.period) for start in starts]


@dataclass(frozen=True, eq=False)
class Repeats:
    """The runs in a straight line of equations.

    Arguments:
        kinds: a number for the kind of each equation, shape (n,).
        weights: how many equations stand before each place, those inside of equations counted,
            shape (n + 1,).
        crossing: how many values are made before each place and read there or after it, shape
            (n + 1,).
    """

    kinds: Numbers
    weights: Numbers
    crossing: Numbers

    @staticmethod
    def of(
        kinds: Sequence[Hashable],
        weights: Sequence[int],
        reads: Sequence[Sequence[Hashable]],
        makes: Sequence[Sequence[Hashable]],
    ) -> Repeats:
        """The runs among equations that read and make some values.

        Arguments:
            kinds: of each equation, whatever it reads.
            weights: how many equations each of them is.
            reads: the values that each of them reads.
            makes: the values that each of them makes.
        """
        numbers: dict[Hashable, int] = {}
        kind_numbers = np.array([numbers.setdefault(kind, len(numbers)) for kind in kinds], int)
        return Repeats(kind_numbers, np.cumsum([0, *weights]), _crossing(reads, makes))

    def apart(self, least: int) -> list[Run]:
        """The runs that save the most; none overlaps another. In order.

        Arguments:
            least: the fewest equations in a window, those inside of equations counted.
        """
        return list(self._apart_between(0, len(self.kinds), least))

    def best_first(self) -> list[Run]:
        """All runs, overlapping ones as well, what saves the most first."""
        stop = len(self.kinds)
        runs = sorted(self._runs(0, stop), key=self.saved, reverse=True)
        return [self._turned(run, stop) for run in runs]

    def window_weight(self, run: Run) -> int:
        """How many equations a window of a run is, those inside of equations counted."""
        return int(self.weights[run.start + run.period] - self.weights[run.start])

    def saved(self, run: Run) -> int:
        """How many equations are there again, those inside of equations counted."""
        return self.window_weight(run) * (run.count - 1)

    def _apart_between(self, start: int, stop: int, least: int) -> Iterator[Run]:
        """The run that saves the most between two places, and what is left on its two sides."""
        runs = [run for run in self._runs(start, stop) if self.window_weight(run) >= least]
        if not runs:
            return
        best = self._turned(max(runs, key=self.saved), stop)
        yield from self._apart_between(start, best.start, least)
        yield best
        yield from self._apart_between(best.stop, stop, least)

    def _runs(self, start: int, stop: int) -> Iterator[Run]:
        kinds = self.kinds[start:stop]
        for period in _distances(kinds.tolist()):
            # Equations that are of the same kind as those a period later, without a gap.
            same = np.concatenate([[False], kinds[:-period] == kinds[period:], [False]])
            for first, end in np.flatnonzero(same[1:] != same[:-1]).reshape(-1, 2).tolist():
                if end - first >= period:
                    yield Run(start + first, period, (end - first) // period + 1)

    def _turned(self, run: Run, stop: int) -> Run:
        """The same number of windows, begun where the fewest values cross."""
        starts = [run.start]
        while len(starts) < run.period:
            end = starts[-1] + run.period * run.count
            if end == stop or self.kinds[end] != self.kinds[end - run.period]:
                break
            starts.append(starts[-1] + 1)
        start = min(starts, key=lambda start: self.crossing[start + run.period])
        return Run(start, run.period, run.count)


def _crossing(reads: Sequence[Sequence[Hashable]], makes: Sequence[Sequence[Hashable]]) -> Numbers:
    made: dict[Hashable, int] = {}
    last: dict[Hashable, int] = {}
    for place, (read, make) in enumerate(zip(reads, makes, strict=True)):
        last.update((value, place) for value in read if value in made)
        made.update(dict.fromkeys(make, place))
    change = np.zeros(len(reads) + 1, int)
    for value, place in last.items():
        change[made[value] + 1] += 1
        change[place + 1] -= 1
    return np.cumsum(change)


def _distances(kinds: list[int]) -> list[int]:
    """The commonest distances from an equation to the next one of its kind."""
    last: dict[int, int] = {}
    found: Counter[int] = Counter()
    for place, kind in enumerate(kinds):
        if kind in last:
            found[place - last[kind]] += 1
        last[kind] = place
    return [distance for distance, _ in found.most_common(PERIODS)]
