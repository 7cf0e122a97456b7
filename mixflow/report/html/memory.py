"""Memory of a program as pages show it: over the program's order, and what is alive at the peak."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from jax.extend.core import ClosedJaxpr

from mixflow.compiler.ir.places import place
from mixflow.compiler.memory.liveness import Alive, peak_memory
from mixflow.compiler.memory.timeline import memory_timeline
from mixflow.report.html.source import code_at

MOST_BUFFERS = 40


@dataclass(frozen=True)
class Moment:
    """Arguments:
    share: of the program's steps that have run before, from 0 to 1.
    bytes: what is alive.
    value: what is computed, as `mul f32[4,8]`.
    at, code: where in the source, and the line that stands there.
    """

    share: float
    bytes: int
    value: str
    at: str
    code: str


@dataclass(frozen=True)
class Buffers:
    """Equal buffers that are alive at the peak.

    Arguments:
        bytes: of all of them.
        count: how many.
        value, at, code: as in `Moment`.
    """

    bytes: int
    count: int
    value: str
    at: str
    code: str


@dataclass(frozen=True)
class Memory:
    """One program's memory, by the planner's estimate.

    Arguments:
        name: the program's.
        peak: bytes.
        moments: the highest of each part of the program, in order.
        buffers: at the peak, the largest first.
        rest: bytes of the buffers at the peak that are not listed.
    """

    name: str
    peak: int
    moments: tuple[Moment, ...]
    buffers: tuple[Buffers, ...]
    rest: int

    @property
    def highest(self) -> tuple[Moment, ...]:
        """The moments with the most memory, the highest first."""
        return tuple(sorted(self.moments, key=lambda one: -one.bytes))[:10]


def estimate_memory(name: str, closed: ClosedJaxpr) -> Memory | None:
    """Estimate a program's memory.

    Returns:
        None where that cannot be done: a symbolic derivative over a mesh axis.
    """
    try:
        peak, timeline = peak_memory(closed), memory_timeline(closed)
    except NameError:  # a mesh axis that exists only inside of its shard_map
        return None
    moments = tuple(
        Moment(
            round(point.step / timeline.steps, 5),
            point.bytes,
            f"{point.primitive} {point.aval}".strip(),
            place(point.at),
            code_at(point.at),
        )
        for point in timeline.points
    )
    buffers = _grouped(peak.alive)
    rest = sum(one.bytes for one in buffers[MOST_BUFFERS:])
    return Memory(name, peak.bytes, moments, buffers[:MOST_BUFFERS], rest)


def _grouped(alive: tuple[Alive, ...]) -> tuple[Buffers, ...]:
    groups: defaultdict[tuple[str, str], list[Alive]] = defaultdict(list)
    for one in alive:
        groups[f"{one.primitive} {one.aval}", one.at].append(one)
    found = [
        Buffers(sum(one.bytes for one in group), len(group), value, place(at), code_at(at))
        for (value, at), group in groups.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.bytes, one.at, one.value)))
