"""A straight-line block as a chain of units, for the schedule of what to save."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from xdsl.ir import Block, Operation, SSAValue
from xdsl.traits import is_side_effect_free

from mixflow.compiler.analysis.residuals import Residuals, residuals_of, size_of, total_size
from mixflow.compiler.analysis.schedule import Array, Chain
from mixflow.compiler.analysis.work import work_of
from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.ir.dialects import mixflow as mf
from mixflow.compiler.primitives import row_by_name
from mixflow.compiler.rules.suspects import is_custom

MAX_UNITS = 96
"""A chain is cut at its narrowest places, no finer than this: the schedule's cost grows as n³."""

LIGHTEST = 1 / 256
"""What a unit has at least of the whole chain's residuals and work: less than half of what one of
`MAX_UNITS` equal units has."""


@dataclass(frozen=True, eq=False)
class Line:
    """A block's operations as units.

    Arguments:
        units: the operations of each unit, in order.
        cheap: operations that belong to no unit; each reader gets a copy of its own.
        chain: the units' figures.
    """

    units: list[list[Operation]]
    cheap: set[Operation]
    chain: Chain


def line_of(block: Block, active: AbstractSet[SSAValue], *, order: int) -> Line:
    """Cut a block into units, and take their figures.

    Arguments:
        block: of a function that is differentiated.
        active: the values that the differentiation reaches.
        order: 1 for a reverse pass; 2 for forward over reverse, where everything has a tangent.
    """
    cheap = _cheap_ops(block, active)
    ops = [op for op in block.ops if op not in cheap and not isinstance(op, jx.YieldOp)]
    known = _Known.of(ops, active)
    positions = _Positions(ops, known.pinned)
    units = _units(ops, known, positions.live)
    return Line(units, cheap, _figures(units, positions, active, known, order))


@dataclass(frozen=True, eq=False)
class _Known:
    """What is asked of a block's operations again and again.

    Arguments:
        pinned: those that are not to be rerun.
        read: what the derivative of each reads.
        work: what it costs to run each.
        residuals: the values that any of them reads going back.
    """

    pinned: set[Operation]
    read: dict[Operation, Residuals]
    work: dict[Operation, float]
    residuals: set[SSAValue]

    @staticmethod
    def of(ops: Sequence[Operation], active: AbstractSet[SSAValue]) -> _Known:
        """Of operations of one block."""
        read = {op: residuals_of(op, active) for op in ops}
        residuals = set[SSAValue]().union(*(one.values for one in read.values()))
        return _Known(set(filter(is_pinned, ops)), read, {op: work_of(op) for op in ops}, residuals)

    def saving(self, op: Operation) -> int:
        """Bytes that are saved of what an operation makes."""
        return total_size(self.residuals.intersection(op.results)) + self.read[op].inside


def is_pinned(op: Operation) -> bool:
    """Whether an operation is not to be rerun.

    It has effects, or takes gradient steps. Or it is in a gradient, and its rule is not linear: to
    whoever differentiates the gradient each run is a call of its own, and clip(a) + clip(b) is not
    clip(a + b).
    """
    if not is_side_effect_free(op):
        return True
    inside = list(op.walk())
    if any(isinstance(inner, mf.DerivativeOp) for inner in inside):
        return True
    has_rule = any(isinstance(inner, jx.LeafOp) and is_custom(inner.eqn) for inner in inside)
    return has_rule and not _is_linear(op)


def _is_linear(op: Operation) -> bool:
    """Whether the rules of the gradient that an operation is in, if any, are linear."""
    parent = op.parent_op()
    while parent is not None and not isinstance(parent, mf.DerivativeOp):
        parent = parent.parent_op()
    return parent is None or parent.differentiand.soundness.is_linear


def _cheap_ops(block: Block, active: AbstractSet[SSAValue]) -> set[Operation]:
    """Operations on nothing but the block's arguments and each other, inactive and cheap."""
    found: set[Operation] = set()
    for op in block.ops:
        if isinstance(op, (jx.LiteralOp, jx.ConstantOp)):
            found.add(op)
        elif isinstance(op, jx.LeafOp) and row_by_name(op.eqn).everywhere:
            inputs = [operand.owner for operand in op.operands]
            known = all(owner in found or owner is block for owner in inputs)
            if known and not any(value in active for value in (*op.operands, *op.results)):
                found.add(op)
    return found


class _Positions:
    """Where values are born and read last, by the number of the operation in the list.

    What pinned operations make is there whatever the schedule, as the block's arguments are.
    """

    def __init__(self, ops: Sequence[Operation], pinned: set[Operation]) -> None:
        self._number = {op: position for position, op in enumerate(ops)}
        self._end = len(ops)
        self.born = {
            value: position
            for position, op in enumerate(ops)
            for value in op.results
            if op not in pinned
        }
        self.last = {value: self._last_use(value) for value in self.born}
        # Bytes that cross the cut after each operation.
        self.live = self.crossing(np.arange(1, self._end + 1), size_of)

    def _last_use(self, value: SSAValue) -> int:
        # A cheap operation never reads what an operation of the chain has made.
        return max((self._number.get(use.operation, self._end) for use in value.uses), default=-1)

    def crossing(self, cuts: Array, size: Callable[[SSAValue], int]) -> Array:
        """Bytes that cross the cut before each of some operations."""
        change = np.zeros(self._end + 2)
        for value, position in self.born.items():
            if self.last[value] > position:
                change[position + 1] += size(value)
                change[self.last[value] + 1] -= size(value)
        return np.cumsum(change)[cuts]


def _shares(amounts: Array) -> Array:
    return amounts / max(amounts.sum(), 1e-300)


def _weights(ops: list[Operation], known: _Known) -> Array:
    """How much each operation is of the whole: its share of what is saved, and of the work."""
    free = [op not in known.pinned for op in ops]
    saving = np.multiply(list(map(known.saving, ops)), free)
    work = np.multiply([known.work[op] for op in ops], free)
    return _shares(saving) + _shares(work)


def _units(ops: list[Operation], known: _Known, live: Array) -> list[list[Operation]]:
    """Cut at narrow places, the narrowest first, while both parts weigh enough to be worth it.

    Arguments:
        ops: what is cut.
        known: about them.
        live: bytes that cross the cut after each operation.
    """
    weight = _weights(ops, known)
    total = np.concatenate([[0.0], np.cumsum(weight)])
    pinned = _pinned_runs([place for place, op in enumerate(ops) if op in known.pinned], total)
    edges = sorted({0, len(ops), *chain.from_iterable(pinned)})
    # Pinned operations are units of their own: nothing that is rerun may contain one. Between
    # them, the narrowest cut first; a cut that leaves next to nothing on one side is no cut.
    for cut in _candidates(live, weight):
        position = bisect(edges, cut)
        start, stop = edges[position - 1 : position + 1]
        if min(total[cut] - total[start], total[stop] - total[cut]) > LIGHTEST:
            edges.insert(position, cut)
        if len(edges) > MAX_UNITS:
            break
    return [ops[start:stop] for start, stop in pairwise(edges) if start < stop]


def _pinned_runs(pinned: list[int], total: Array) -> list[tuple[int, int]]:
    """Where units of pinned operations start and stop.

    Each pinned operation is a unit. Where there are many, such as 300 gradient steps in a row, a
    unit is several of them with the updates between: so little is not worth 600 units.

    Arguments:
        pinned: their places, in order.
        total: what the operations before each place weigh.
    """
    # All together weigh 2: so there are at most `MAX_UNITS` / 2 runs, with a unit between each two.
    lightest = 0.0 if len(pinned) <= MAX_UNITS // 2 else 4 / MAX_UNITS
    runs: list[tuple[int, int]] = []
    for place in pinned:
        if runs and total[place] - total[runs[-1][0]] < lightest:
            runs[-1] = runs[-1][0], place + 1
        else:
            runs.append((place, place + 1))
    return runs


def _candidates(live: Array, weight: Array) -> list[int]:
    """Places where fewer bytes cross than just before and after, and next to heavy operations."""
    before = np.concatenate([[np.inf], live[:-1]])
    after = np.concatenate([live[1:], [np.inf]])
    heavy = weight > LIGHTEST
    beside = heavy | np.concatenate([heavy[1:], [False]])
    positions = np.flatnonzero(((live < before) & (live <= after)) | beside)
    positions = positions[positions < len(live) - 1]
    return (positions[np.argsort(live[positions], kind="stable")] + 1).tolist()


def _figures(
    units: list[list[Operation]],
    positions: _Positions,
    active: AbstractSet[SSAValue],
    known: _Known,
    order: int,
) -> Chain:
    """The figures of units in bytes and work, as the schedule asks for them.

    For each unit: what it saves if it is not rerun (`saved`), and the most that is alive while
    it is taken back (`working`): what it saves, and the cotangents of what is alive then. Where it
    is differentiated twice (`order` 2), each active value has its tangent beside it.
    """
    residuals = known.residuals
    starts = np.cumsum([0, *map(len, units)])

    def copies(value: SSAValue) -> int:
        """Bytes of a value with its tangent."""
        return size_of(value) * (order if value in active else 1)

    saved: list[float] = []
    working: list[float] = []
    # The way back through a unit: it has been rerun by then, so all that it saves is alive, and
    # cotangents are made from the last operation to the first, each while others are alive.
    for unit in units:
        saving = peak = 0
        for op in (op for op in unit if op not in known.pinned):
            position = positions.born[op.results[0]] if op.results else 0
            saving += order * known.read[op].inside
            saving += sum(copies(value) for value in op.results if value in residuals)
            # Cotangents of what is live, of the operands, and one that is being made.
            going_back = positions.live[position] + total_size(
                value for value in {*op.operands, *op.results} if value in active
            )
            peak = max(peak, saving + order * going_back)
        saved.append(saving)
        working.append(peak)
    return Chain(
        forward=np.array([sum(known.work[op] for op in unit) for unit in units]),
        saved=np.array(saved, float),
        working=np.array(working, float),
        entering=positions.crossing(starts[:-1], lambda v: 0 if v in residuals else copies(v)),
        crossing=_crossing(positions, starts, copies),
        pinned=np.array([not known.pinned.isdisjoint(unit) for unit in units], bool),
    )


def _crossing(positions: _Positions, starts: Array, copies: Callable[[SSAValue], int]) -> Array:
    """At [s, t]: bytes born in units s … t−1 and read after them."""
    n = len(starts) - 1
    crossing = np.zeros((n + 1, n + 1))
    for value, position in positions.born.items():
        first = int(np.searchsorted(starts, position, side="right")) - 1
        last = int(np.searchsorted(starts, positions.last[value], side="right")) - 1
        # It counts for every run of units that contains its birth and ends before its last reader.
        crossing[: first + 1, first + 1 : min(last, n) + 1] += copies(value)
    return crossing
