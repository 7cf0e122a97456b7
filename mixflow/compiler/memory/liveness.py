"""Peak memory of a program's temporaries, and who is alive at the peak.

What is estimated is XLA's `memory_analysis().temp_size_in_bytes` on a CPU. The program is lowered
to a graph of values, fused to kernels, put into XLA's order, and swept. `docs/estimates.md` says
what is modelled and how far off it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr

from mixflow.compiler import jax_compat
from mixflow.compiler.memory.dataflow import Graph, Kind, Value
from mixflow.compiler.memory.fusion import Kernel, kernels_of
from mixflow.compiler.memory.lowering import lower
from mixflow.compiler.memory.products import reads_columns


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

    Raises:
        NameError: a symbolic derivative over a mesh axis, which cannot be spelled out.
    """
    return Sweeper().peak(lower(closed))


def breadth_first(kernels: list[Kernel]) -> list[int]:
    """XLA's order on a CPU: each kernel as soon as what it reads is there, in turn.

    Source: XLA's BFScheduler.
    """
    waiting = [len(kernel.reads) for kernel in kernels]
    readers: list[list[int]] = [[] for _ in kernels]
    for number in sorted(range(len(kernels)), key=lambda number: _is_rewritten(kernels[number])):
        for read in kernels[number].reads:
            readers[read].append(number)
    ready = deque(number for number, count in enumerate(waiting) if not count)
    order: list[int] = []
    while ready:
        number = ready.popleft()
        order.append(number)
        for reader in readers[number]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order


def _is_rewritten(kernel: Kernel) -> bool:
    """Whether XLA has put the kernel in the place of another one, and thus last among readers."""
    value = kernel.value
    return value.kind is Kind.DOT and reads_columns(value.eqn, value.reads[0])


_NOTHING = Peak(0, ())


@dataclass(frozen=True)
class _Highest:
    """The highest point of a sweep so far.

    Arguments:
        bytes: how much is alive.
        buffers: what is alive there.
        taken: the one of them that is written over, and no more.
        nested: the peak inside of what runs there.
    """

    bytes: int
    buffers: tuple[int, ...]
    taken: int | None
    nested: Peak


@dataclass(frozen=True)
class Moment:
    """One step of a sweep.

    Arguments:
        value: what the step computes.
        bytes: what is alive while it runs, nested temporaries included.
        nested: the part of `bytes` that is alive inside of it.
    """

    value: Value
    bytes: int
    nested: int


class Sweeper:
    """Sweeps regions; one that runs in several places is swept once."""

    def __init__(self) -> None:
        self._peaks: dict[Graph, Peak] = {}

    def peak(self, region: Graph) -> Peak:
        """The peak of a region's own temporaries, those of nested regions on top."""
        if region not in self._peaks:
            self._peaks[region] = self._sweep(region)
        return self._peaks[region]

    def moments(self, region: Graph) -> list[Moment]:
        """Every step of a region, in the order in which they run."""
        moments: list[Moment] = []
        self._peaks[region] = self._sweep(region, moments)
        return moments

    def _sweep(self, region: Graph, moments: list[Moment] | None = None) -> Peak:
        kernels = kernels_of(region)
        order = breadth_first(kernels)
        buffers = _Buffers(region, kernels, order)
        highest = _Highest(0, (), None, _NOTHING)
        alive: dict[int, int] = {}
        total = 0
        for step, number in enumerate(order):
            size = buffers.born(number)
            if size:
                alive[number] = size
                total += size
            # An operand that dies here and is written over: for a moment it is one buffer, not two.
            taken = buffers.taken_over(step, number) if size else None
            nested = self._nested(kernels[number].value)
            now = total - (0 if taken is None else alive[taken]) + nested.bytes
            if moments is not None:
                moments.append(Moment(kernels[number].value, now, nested.bytes))
            if now > highest.bytes:
                highest = _Highest(now, tuple(alive), taken, nested)
            for dead in buffers.dying[step]:
                total -= alive.pop(dead, 0)
        return _described(highest, kernels)

    def _nested(self, value: Value) -> Peak:
        if value.nested is None:
            return _NOTHING
        peaks = map(self.peak, value.nested.regions)
        return max(peaks, key=lambda peak: peak.bytes, default=_NOTHING)


class _Buffers:
    """Which kernels share a buffer, and from when to when each buffer is needed.

    Arguments:
        region: its results live in memory of the caller's.
        kernels: its kernels.
        order: the places of the kernels, in the order in which they run.
    """

    def __init__(self, region: Graph, kernels: list[Kernel], order: list[int]) -> None:
        self._kernels = kernels
        self._step = {number: step for step, number in enumerate(order)}
        self._position = {kernel.value: number for number, kernel in enumerate(kernels)}
        self._last_read = self._last_reads()
        self._results = {self._position[value] for value in region.results}
        self._end: dict[int, int] = {}
        self._owner: dict[int, int] = {}
        for number in order:
            self._assign(number, len(order))
        # Lent buffers are the caller's memory: results, what a loop's next step starts from, and
        # what fits into a result's memory before the result is written.
        results = {self._owner[self._position[value]] for value in region.outputs}
        self._lent = results | self._carried(region)
        self._lent |= self._inside_results(region)
        self.dying: list[list[int]] = [[] for _ in range(len(order) + 1)]
        """For each step, the buffers that nobody needs after it."""
        for owner, end in self._end.items():
            self.dying[end].append(owner)

    def _last_reads(self) -> dict[int, int]:
        last: dict[int, int] = {}
        for number, kernel in enumerate(self._kernels):
            for read in (*kernel.reads, *self._written_beside(kernel)):
                last[read] = max(last.get(read, -1), self._step[number])
        return last

    def _written_beside(self, kernel: Kernel) -> tuple[int, ...]:
        """What a call reads while it writes this one of its results."""
        is_part = kernel.value.kind is Kind.PART and kernel.value.shares is None
        return self._kernels[kernel.reads[0]].reads if is_part else ()

    def _assign(self, number: int, stop: int) -> None:
        """Give a kernel's result a buffer, its own or that of another value."""
        owner = self._shared(number)
        self._owner[number] = owner
        # A result is needed to the end. So is what nobody reads, but only while it is made.
        needed = stop if number in self._results else self._last_read.get(number, 0)
        self._end[owner] = max(self._end.get(owner, 0), needed, self._step[number])

    def _shared(self, number: int) -> int:
        value = self._kernels[number].value
        # A part of a tuple, or what a loop hands through, is in the memory of the whole.
        if value.shares is not None:
            shared = self._position.get(value.shares)
            return number if shared is None else self._owner[shared]
        if value.kind is not Kind.UPDATE or value.name == "stacked":
            return number
        # `x.at[i].set(y)` writes into x, unless x is an argument, a result, or read later.
        base = self._kernels[number].reads[0]
        owner = self._owner[base]
        is_ours = self._kernels[owner].value.kind is not Kind.SOURCE
        is_free = base not in self._results and self._end[owner] <= self._step[number]
        return owner if is_ours and is_free else number

    # --- memory that is not the region's own ------------------------------------------------------

    def _carried(self, region: Graph) -> set[int]:
        """What a loop's body writes over the value that it was given."""
        found: set[int] = set()
        for old, new in region.carries:
            number = self._position[new]
            last = self._last_read.get(self._position[old], -1)
            step = self._step[number]
            if last < step or (last == step and self._is_in_place(number, old)):
                found.add(self._owner[number])
        return found

    def _is_in_place(self, number: int, old: Value) -> bool:
        """Whether a kernel may write its result over a value that it reads."""
        kernel = self._kernels[number]
        return kernel.value.kind is Kind.UPDATE or self._position[old] in kernel.aligned

    def _inside_results(self, region: Graph) -> set[int]:
        """Buffers that fit into the memory of a result before that is needed, the largest first.

        Results are not temporaries. In `a @ a @ a @ a` the first product can be in the memory of
        the result, which is not written before the first product is dead.
        """
        if region.carries:
            return set()
        steps = {owner: self._steps_of(owner) for owner in self._end if self._own_bytes(owner)}
        taken = {owner: steps[owner] for owner in self._lent if owner in steps}
        kept: set[int] = set()
        for owner in sorted(steps.keys() - taken.keys(), key=self._own_bytes, reverse=True):
            size = self._own_bytes(owner)
            for result, occupied in taken.items():
                if self._own_bytes(result) >= size and not occupied & steps[owner]:
                    taken[result] = occupied | steps[owner]
                    kept.add(owner)
                    break
        return kept

    def _steps_of(self, owner: int) -> int:
        """The steps at which a buffer is needed, as the bits of a number."""
        first = self._step[owner]
        return ((1 << (self._end[owner] - first + 1)) - 1) << first

    # --- what the sweep asks for ------------------------------------------------------------------

    def _own_bytes(self, number: int) -> int:
        value = self._kernels[number].value
        return 0 if value.kind in (Kind.SOURCE, Kind.BARRIER) else value.bytes

    def born(self, number: int) -> int:
        """Bytes of the buffer that a kernel starts; 0 if it writes into another one."""
        is_new = self._owner[number] == number and number not in self._lent
        return self._own_bytes(number) if is_new else 0

    def taken_over(self, step: int, number: int) -> int | None:
        """A buffer that a kernel reads for the last time, element by element, and writes to."""
        kernel = self._kernels[number]
        for dead in self.dying[step]:
            if dead in kernel.aligned and self.born(dead) == kernel.value.bytes:
                return dead
        return None


def _described(highest: _Highest, kernels: list[Kernel]) -> Peak:
    own = [_alive(kernels[one].value) for one in highest.buffers if one != highest.taken]
    alive = sorted((*own, *highest.nested.alive), key=lambda one: one.bytes, reverse=True)
    return Peak(highest.bytes, tuple(alive))


def _alive(value: Value) -> Alive:
    aval = ShapedArray(value.shape, value.dtype).str_short(short_dtypes=True)
    return Alive(value.bytes, aval, source_of(value), value.name)


def source_of(value: Value) -> str:
    """The user's `file:line` of what computes a value, or "<unknown>"."""
    return "<unknown>" if value.eqn is None else jax_compat.source_line(value.eqn.source_info)
