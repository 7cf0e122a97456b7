"""Repeats: windows of operations that do the same, one after the other, and can be one loop.

    x1 = layer(x0, w0, mask)          mask   is the same for all windows
    x2 = layer(x1, w1, mask)          x0 …   is carried from window to window
    x3 = layer(x2, w2, mask)          w0 …   is another one for each window

Windows of equal kinds need not be a loop: the second window may read what the first made where the
third reads something else. They are one where each reads the same of itself, and the same of the
window before, and everything else from outside. So twenty equal gradient steps that belong to four
tasks are four repeats of five steps, because a task begins with what was there before.

A window may cut its own part out of an array (`rates[i]`). The windows' cuts differ, and read only
what was there before, so they are left outside: the part is another one for each window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from xdsl.ir import Block, Operation, OpResult, SSAValue
from xdsl.traits import is_side_effect_free

from mixflow.compiler.analysis.kinds import Kinds, is_cut
from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.jaxprs.repeats import Repeats, Run

LEAST_WINDOWS = 3
"""Two windows as a loop save half of the compile time at most, and little memory."""

LEAST = 12
"""The fewest operations in a window, those inside of operations counted: XLA makes better code of
few operations that are written out."""

MANY = 100
"""So many operations that are there again are worth a loop, however small a window is. XLA took 140
seconds for the gradient through 50 times `tanh(x * w + e)`."""


@dataclass(frozen=True)
class Repeat:
    """Windows that are one loop.

    Arguments:
        windows: their operations, in order; as many in each, those of one place of one kind.
        cuts: the places in a window of what is left outside of the loop.
    """

    windows: Sequence[Sequence[Operation]]
    cuts: frozenset[int]

    @property
    def inside(self) -> list[list[Operation]]:
        """The windows' operations that are in the loop."""
        return [
            [op for place, op in enumerate(window) if place not in self.cuts]
            for window in self.windows
        ]


def find_repeats(block: Block, kinds: Kinds) -> Iterator[Repeat]:
    """Windows that can be a loop, what saves the most first. They may overlap.

    Arguments:
        block: whose operations are looked at; those inside of them are not.
        kinds: of its operations.
    """
    ops = _line(block, kinds)
    numbers = list(map(kinds.rough, ops))
    repeats = Repeats.of(
        numbers, list(map(_weight, ops)), [op.operands for op in ops], [op.results for op in ops]
    )
    for run in repeats.best_first():
        is_much = repeats.window_weight(run) >= LEAST or repeats.saved(run) >= MANY
        if is_much and run.count >= LEAST_WINDOWS:
            yield from _Windows(ops, run, kinds).repeats()


def _weight(op: Operation) -> int:
    """How many operations an operation is, those inside of it counted."""
    return sum(not isinstance(one, (jx.LiteralOp, jx.YieldOp)) for one in op.walk())


def _line(block: Block, kinds: Kinds) -> list[Operation]:
    """The operations of a block among which windows are found.

    Not among them: a mask or the like that is made of nothing by the first layer and read by all,
    and parts of the block's inputs. The first window is like the others then.
    """
    no_work = jx.LiteralOp, jx.ConstantOp, jx.YieldOp
    ops = [op for op in block.ops if not isinstance(op, no_work)]
    counts = Counter(map(kinds.rough, ops))
    # What as many do as a loop has windows belongs to the windows, such as `0.9 * momentum`, which
    # is made of literals alone in the first of them.
    few = [op for op in ops if counts[kinds.rough(op)] < LEAST_WINDOWS]
    cuts = _that_read_only((Block, jx.ConstantOp), list(filter(is_cut, ops)))
    outside = {*_that_read_only(jx.LiteralOp, few), *cuts}
    return [op for op in ops if op not in outside]


def _that_read_only(
    kind: type[object] | tuple[type[object], ...], ops: Sequence[Operation]
) -> dict[Operation, None]:
    """Those that read values of such owners, or each other's; in their order."""
    found = dict[Operation, None]()
    for op in ops:
        owners = [value.owner for value in op.operands]
        if is_side_effect_free(op) and all(isinstance(one, kind) or one in found for one in owners):
            found[op] = None
    return found


class _Windows:
    """The windows of one run, and where their operands come from."""

    def __init__(self, ops: Sequence[Operation], run: Run, kinds: Kinds) -> None:
        self._kinds = kinds
        self._windows = [[ops[place] for place in window] for window in run.windows]
        self._where = {
            op: (number, place)
            for number, window in enumerate(self._windows)
            for place, op in enumerate(window)
        }
        self._cuts: set[int] = set()
        for place, alike in enumerate(zip(*self._windows, strict=True)):
            if all(is_cut(op) and all(map(self._is_outside, op.operands)) for op in alike):
                self._cuts.add(place)

    def repeats(self) -> Iterator[Repeat]:
        """The run, parted where a window reads something else than the one before it does."""
        signatures = list(map(self._signature, range(len(self._windows))))
        start = 0
        while start < len(signatures):
            stop = start + 1
            while stop < len(signatures) and _goes_on(signatures, start, stop):
                stop += 1
            if stop - start < LEAST_WINDOWS:
                start += 1
                continue
            yield Repeat(self._windows[start:stop], frozenset(self._cuts))
            start = stop

    def _is_outside(self, value: SSAValue) -> bool:
        found = self._where.get(value.owner) if isinstance(value.owner, Operation) else None
        return found is None or found[1] in self._cuts

    def _signature(self, number: int) -> list[Hashable]:
        """What a window does exactly, and where it has its operands from."""
        found = list[Hashable]()
        for place, op in enumerate(self._windows[number]):
            if place not in self._cuts:
                found.append(self._kinds.exact(op))
                found += [self._source(number, value) for value in op.operands]
        return found

    def _source(self, number: int, value: SSAValue) -> Hashable:
        if self._is_outside(value):
            return _Source()
        assert isinstance(value, OpResult)
        window, place = self._where[value.op]
        made = place, value.index
        return made if window == number else _Source(number - window, made)


@dataclass(frozen=True)
class _Source:
    """Where a window has an operand from that it does not make.

    Arguments:
        back: from how many windows before it; 0 for what none of them makes.
        made: by which of their operations, and as which result.
    """

    back: int = 0
    made: tuple[int, int] | None = None


def _goes_on(signatures: Sequence[Sequence[Hashable]], start: int, number: int) -> bool:
    """Whether a window is a loop's next step after those from `start` on."""
    mine = signatures[number]
    if any(isinstance(one, _Source) and one.back > 1 for one in mine):
        return False
    if number > start + 1:
        return mine == signatures[start + 1]
    # What the others read of the window before them, the first one reads from outside.
    return all(
        first == second or (isinstance(first, _Source) and isinstance(second, _Source))
        for first, second in zip(signatures[start], mine, strict=True)
    )
