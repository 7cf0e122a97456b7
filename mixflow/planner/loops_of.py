"""A program's loops, as the planner sees them, read off its IR."""

from __future__ import annotations

from collections.abc import Mapping
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
    reader = _Reader(named, active, respect)
    return Loops(reader.inside(None))


@dataclass(frozen=True)
class _Reader:
    named: Mapping[str, ScanOp]
    active: AbstractSet[SSAValue]
    respect: bool

    def inside(self, around: ScanOp | None) -> tuple[Loop, ...]:
        """The loops that stand in one, but in none between; the outermost ones for None."""
        pairs = self.named.items()
        return tuple(self._loop(name, op) for name, op in pairs if self._holder(op) is around)

    def _holder(self, op: Operation) -> ScanOp | None:
        """The loop that an operation stands in. A derivative saves nothing of the loops in it."""
        parent = op.parent_op()
        if parent is None or isinstance(parent, DerivativeOp):
            return None
        if isinstance(parent, ScanOp) and parent in self.named.values():
            return parent
        return self._holder(parent)

    def _loop(self, name: str, op: ScanOp) -> Loop:
        block = op.regions[0].block
        loops = {one for one in self.named.values() if self._holder(one) is op}
        others = [one for one in block.ops if loops.isdisjoint(one.walk())]
        theirs = users_steps(op)
        left = are_left_to_user(theirs, respect=self.respect)
        return Loop(
            name,
            steps=op.length if isinstance(op.params["length"], int) else 1,  # left open by export
            state_bytes=0 if left else total_size(op.operands[op.num_consts :][: op.num_carry]),
            other_bytes=residual_bytes(block, self.active, of=others),
            work=sum(map(work_of, others)),
            takes_steps=is_inner_loop(op),
            given=1 if theirs else 0,
            left=left,
            inside=self.inside(op),
        )
