"""A program's loops, as the planner sees them, read off its IR."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue

from mixflow.compiler.analysis.residuals import residual_bytes, total_size
from mixflow.compiler.analysis.work import work_of
from mixflow.compiler.ir.dialects.jaxpr import ScanOp
from mixflow.compiler.ir.dialects.mixflow import DerivativeOp
from mixflow.passes.inner_loops.find import are_left_to_user, is_inner_loop, users_steps
from mixflow.planner.loops import Loop, Loops


def loops_of(named: Mapping[str, ScanOp], active: AbstractSet[SSAValue], *, respect: bool) -> Loops:
    """The tree of a program's loops.

    Arguments:
        named: the loops by their names, each before those inside it.
        active: the values that a cotangent comes back to.
        respect: whether steps that the user has checkpointed are to stay as they are.
    """
    names = {op: name for name, op in named.items()}
    inside = defaultdict[ScanOp | None, list[ScanOp]](list)
    for op in names:
        inside[_around(op, names)].append(op)
    return _Reader(names, inside, active, respect).loops(None)


def _around(op: Operation, names: Mapping[ScanOp, str]) -> ScanOp | None:
    """The loop that an operation stands in. A derivative saves nothing of the loops in it."""
    parent = op.parent_op()
    if parent is None or isinstance(parent, DerivativeOp):
        return None
    return parent if isinstance(parent, ScanOp) and parent in names else _around(parent, names)


@dataclass(frozen=True)
class _Reader:
    names: Mapping[ScanOp, str]
    inside: Mapping[ScanOp | None, Sequence[ScanOp]]
    active: AbstractSet[SSAValue]
    respect: bool

    def loops(self, around: ScanOp | None) -> Loops:
        """The loops that stand in one, but in none between; the outermost ones for None."""
        return Loops(tuple(map(self._loop, self.inside.get(around, ()))))

    def _loop(self, op: ScanOp) -> Loop:
        block, loops = op.regions[0].block, set(self.inside.get(op, ()))
        others = [one for one in block.ops if loops.isdisjoint(one.walk())]
        theirs = users_steps(op)
        left = are_left_to_user(theirs, respect=self.respect)
        return Loop(
            self.names[op],
            steps=op.length if isinstance(op.params["length"], int) else 1,  # left open by export
            state_bytes=0 if left else total_size(op.operands[op.num_consts :][: op.num_carry]),
            other_bytes=residual_bytes(block, self.active, of=others),
            work=sum(map(work_of, others)),
            takes_steps=is_inner_loop(op),
            given=1 if theirs else 0,
            left=left,
            inside=self.loops(op).outermost,
        )
