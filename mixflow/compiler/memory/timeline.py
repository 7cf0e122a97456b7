"""How much memory is alive at each step of a program, in the order in which it runs.

A step is a kernel, as `liveness` sweeps them. A loop is unrolled once, and a conditional by its
largest branch, so the highest point is the peak that `peak_memory` gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr

from mixflow.compiler.memory.dataflow import Graph, Value
from mixflow.compiler.memory.liveness import Moment, Sweeper, source_of
from mixflow.compiler.memory.lowering import lower

MOST_POINTS = 400


@dataclass(frozen=True)
class Point:
    """Arguments:
    step: the place of the step in the program's order, loops unrolled once.
    bytes: what is alive while it runs.
    at: the user's `file:line` of what it computes, or "<unknown>".
    primitive: what it computes.
    aval: the type of that, as `f32[4,8]`; empty for several values.
    """

    step: int
    bytes: int
    at: str
    primitive: str
    aval: str


@dataclass(frozen=True)
class Timeline:
    """Arguments:
    steps: how many steps the program has.
    points: some of them, in order, the highest among them.
    """

    steps: int
    points: tuple[Point, ...]


def memory_timeline(closed: ClosedJaxpr, most: int = MOST_POINTS) -> Timeline:
    """The bytes that temporaries take while each step of a program runs.

    Arguments:
        closed: the whole program, as for `peak_memory`.
        most: keep no more points than this: the highest of each run of neighbours.

    Raises:
        NameError: a symbolic derivative over a mesh axis, which cannot be spelled out.
    """
    return _Unrolled(most).timeline(lower(closed))


class _Unrolled:
    """Puts the timelines of nested regions on top of those around them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sweeper = Sweeper()
        self._known: dict[Graph, Timeline] = {}

    def timeline(self, region: Graph) -> Timeline:
        """The timeline of one region; one that runs in several places is worked out once."""
        if region not in self._known:
            self._known[region] = self._timeline(region)
        return self._known[region]

    def _timeline(self, region: Graph) -> Timeline:
        steps, points = 0, list[Point]()
        for moment in self._sweeper.moments(region):
            points.append(_point(steps, moment))
            nested = self._nested(moment.value)
            points += self._on_top(moment, nested, steps + 1)
            steps += 1 + nested.steps
        return Timeline(steps, tuple(thinned(points, self._most)))

    def _nested(self, value: Value) -> Timeline:
        if value.nested is None or not value.nested.regions:
            return Timeline(0, ())
        largest = max(value.nested.regions, key=lambda region: self._sweeper.peak(region).bytes)
        return self.timeline(largest)

    def _on_top(self, moment: Moment, nested: Timeline, start: int) -> list[Point]:
        below = moment.bytes - moment.nested
        return [
            replace(point, step=start + point.step, bytes=below + point.bytes)
            for point in nested.points
        ]


def _point(step: int, moment: Moment) -> Point:
    """A step by itself, without what runs inside of it."""
    value = moment.value
    is_array = value.dtype is not None
    aval = ShapedArray(value.shape, value.dtype).str_short(short_dtypes=True) if is_array else ""
    return Point(step, moment.bytes - moment.nested, source_of(value), value.name, aval)


def thinned(points: list[Point], most: int) -> list[Point]:
    """At most `most` of the points: the first highest of each of as many runs of equal length."""
    if len(points) <= most:
        return points
    edges = [len(points) * position // most for position in range(most + 1)]
    runs = [points[start:stop] for start, stop in pairwise(edges)]
    return [max(run, key=lambda point: point.bytes) for run in runs]
