"""Peak memory of a program's temporaries, and who is alive at the peak.

What is estimated is XLA's `memory_analysis().temp_size_in_bytes` on a CPU. The program is lowered
to a graph of values, fused to kernels, put into the order that XLA would choose, and swept.
`docs/estimates.md` says what is modelled and how far off it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr

from mixflow.compiler import jax_compat
from mixflow.compiler.analysis.dataflow import Kind, Region, Value
from mixflow.compiler.analysis.fusion import Kernel, kernels_of
from mixflow.compiler.analysis.lowering import lower
from mixflow.compiler.analysis.order import breadth_first, depth_first

_GIBIBYTE = 2**30


@dataclass(frozen=True)
class Alive:
    """A buffer at the peak.

    Arguments:
        bytes: its size.
        aval: its type, as `f32[4,8]`.
        at: the user's `file:line` of what computes it, or "<unknown>".
        primitive: what computes it.
    """

    bytes: int
    aval: str
    at: str
    primitive: str


@dataclass(frozen=True)
class Peak:
    """Arguments:
    bytes: the most that temporaries take at any time; arguments and results are not counted.
    alive: the buffers at that time, largest first; their sizes add up to `bytes`.
    """

    bytes: int
    alive: tuple[Alive, ...]


def peak_memory(closed: ClosedJaxpr) -> Peak:
    """The peak of a program's temporaries, as XLA's CPU backend would allocate them.

    Arguments:
        closed: the whole program, as `jax.jit(f).trace(...).jaxpr` gives it; symbolic
            derivatives in it are spelled out.
    """
    region = lower(closed)
    deep = _Sweeper(_by_depth).peak(region)
    broad = _Sweeper(_by_breadth).peak(region)
    return broad if _is_affordable(broad.bytes, deep.bytes) else deep


def _is_affordable(broad: int, deep: int) -> bool:
    """Whether XLA runs kernels early, which lets more of them run at once, at this price.

    The test of XLA's `IsConcurrencyOptimizedScheduleAffordable` allows 2.0 times the memory for
    1 GiB, 1.1 times for 99 GiB and 1.05 times for 399 GiB; one root goes through all three.
    """
    return broad <= deep * (1 + math.sqrt(_GIBIBYTE / max(broad, 1)))


def _by_depth(region: Region) -> list[int]:
    kernels = kernels_of(region)
    place = {kernel.value: number for number, kernel in enumerate(kernels)}
    return depth_first(kernels, dict.fromkeys(place[value] for value in region.results))


def _by_breadth(region: Region) -> list[int]:
    return breadth_first(kernels_of(region))


@dataclass
class _Highest:
    """The highest point of a sweep so far: bytes, and the values and nested peak they are of."""

    bytes: int
    values: tuple[Value, ...]
    nested: Peak


_NOTHING = Peak(0, ())


class _Sweeper:
    """Sweeps regions in one order; one that runs in several places is swept once."""

    def __init__(self, order: Callable[[Region], list[int]]) -> None:
        self._order = order
        self._peaks: dict[Region, Peak] = {}

    def peak(self, region: Region) -> Peak:
        """The peak of a region's own temporaries, those of nested regions on top."""
        if region not in self._peaks:
            self._peaks[region] = self._sweep(region)
        return self._peaks[region]

    def _sweep(self, region: Region) -> Peak:
        kernels, order = kernels_of(region), self._order(region)
        buffers = _Buffers(region, kernels, order)
        highest = _Highest(0, (), _NOTHING)
        alive: dict[int, int] = {}
        total = 0
        for step, number in enumerate(order):
            size = buffers.born(number)
            if size:
                alive[number] = size
                total += size
            taken = buffers.taken_over(step, number) if size else None
            nested = self._nested(kernels[number])
            now = total - (0 if taken is None else alive[taken]) + nested.bytes
            if now > highest.bytes:
                values = tuple(kernels[one].value for one in alive if one != taken)
                highest = _Highest(now, values, nested)
            for dead in buffers.dying[step]:
                total -= alive.pop(dead, 0)
        return _described(highest)

    def _nested(self, kernel: Kernel) -> Peak:
        if kernel.value.nested is None:
            return _NOTHING
        peaks = map(self.peak, kernel.value.nested.regions)
        return max(peaks, key=lambda peak: peak.bytes, default=_NOTHING)


class _Buffers:
    """Which kernels share a buffer, and from when to when each buffer is needed.

    Arguments:
        region: its results live in memory of the caller's.
        kernels: its kernels.
        order: the places of the kernels, in the order in which they run.
    """

    def __init__(self, region: Region, kernels: list[Kernel], order: list[int]) -> None:
        self._kernels = kernels
        self._step = {number: step for step, number in enumerate(order)}
        self._place = {kernel.value: number for number, kernel in enumerate(kernels)}
        self._last_read = self._last_reads()
        self._results = {self._place[value] for value in region.results}
        self._end: dict[int, int] = {}
        self._owner: dict[int, int] = {}
        for number in order:
            self._assign(number, len(order))
        self._callers = self._of_caller(region)
        self.dying: list[list[int]] = [[] for _ in range(len(order) + 1)]
        """For each step, the buffers that nobody needs after it."""
        for owner, end in self._end.items():
            self.dying[end].append(owner)

    def _last_reads(self) -> dict[int, int]:
        last: dict[int, int] = {}
        for number, kernel in enumerate(self._kernels):
            for read in kernel.reads:
                last[read] = max(last.get(read, -1), self._step[number])
        return last

    def _assign(self, number: int, stop: int) -> None:
        """Give a kernel's result a buffer, its own or that of another value."""
        owner = self._shared(number)
        self._owner[number] = owner
        needed = stop if number in self._results else self._last_read.get(number, 0)
        self._end[owner] = max(self._end.get(owner, 0), needed, self._step[number])

    def _shared(self, number: int) -> int:
        kernel = self._kernels[number]
        if kernel.value.shares is not None:
            shared = self._place.get(kernel.value.shares)
            return number if shared is None else self._owner[shared]
        if kernel.value.kind is not Kind.UPDATE or kernel.value.name == "stack":
            return number
        base = kernel.reads[0]
        owner = self._owner[base]
        is_ours = self._kernels[owner].value.kind is not Kind.SOURCE
        is_free = base not in self._results and self._end[owner] <= self._step[number]
        return owner if is_ours and is_free else number

    def _of_caller(self, region: Region) -> set[int]:
        """The buffers that the caller provides: results, and what a loop carries in place."""
        provided = {self._owner[self._place[value]] for value in region.outputs}
        for old, new in region.carries:
            number = self._place[new]
            last = self._last_read.get(self._place[old], -1)
            step = self._step[number]
            if last < step or (last == step and self._is_in_place(number, old)):
                provided.add(self._owner[number])
        return provided

    def _is_in_place(self, number: int, old: Value) -> bool:
        """Whether a kernel may write its result over a value that it reads."""
        kernel = self._kernels[number]
        return kernel.value.kind is Kind.UPDATE or self._place[old] in kernel.aligned

    def born(self, number: int) -> int:
        """Bytes of the buffer that a kernel starts; 0 if it writes into another one."""
        value = self._kernels[number].value
        if value.kind in (Kind.SOURCE, Kind.BARRIER) or number in self._callers:
            return 0
        return value.bytes if self._owner[number] == number else 0

    def taken_over(self, step: int, number: int) -> int | None:
        """A buffer that a kernel reads for the last time, element by element, and writes to."""
        kernel = self._kernels[number]
        for dead in self.dying[step]:
            if dead in kernel.aligned and self.born(dead) == kernel.value.bytes:
                return dead
        return None


def _described(highest: _Highest) -> Peak:
    own = map(_alive, highest.values)
    alive = sorted((*own, *highest.nested.alive), key=lambda one: one.bytes, reverse=True)
    return Peak(highest.bytes, tuple(alive))


def _alive(value: Value) -> Alive:
    at = "<unknown>" if value.eqn is None else jax_compat.source_line(value.eqn.source_info)
    aval = ShapedArray(value.shape, value.dtype).str_short(short_dtypes=True)
    return Alive(value.bytes, aval, at, value.name)
