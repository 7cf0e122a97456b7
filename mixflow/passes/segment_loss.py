"""Differentiated straight-line code is cut into segments, which are rerun going back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import I1, DenseArrayBase, ModuleOp, StringAttr, UnitAttr, i1
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import PatternRewriter

from mixflow.compiler.analysis.activity import Activity, find_activity
from mixflow.compiler.analysis.chains import Line, is_pinned, line_of
from mixflow.compiler.analysis.residuals import residual_bytes, total_size
from mixflow.compiler.analysis.schedule import Schedule, find_schedule
from mixflow.compiler.ir.building import inline_body
from mixflow.compiler.ir.dialects.jaxpr import (
    CheckpointOp,
    ConstantOp,
    JitOp,
    LeafOp,
    LiteralOp,
    ReadableOp,
    ScanOp,
    YieldOp,
)
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.dialects.remarks import has_remark, rewrote
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.jaxprs.sizes import number_of
from mixflow.compiler.primitives import row_by_name
from mixflow.passes.canonicalize import is_inlinable
from mixflow.passes.checkpoint_inner_loop import checkpoint_body


@dataclass(frozen=True)
class Target:
    """A block to segment.

    Arguments:
        op: the operation that holds it, for the remark.
        block: differentiated straight-line code.
        order: 1 where it is differentiated once, 2 under forward over reverse.
    """

    op: ReadableOp
    block: Block
    order: int


def targets(function: FuncOp, activity: Activity) -> Iterator[Target]:
    """The bodies of all derivatives, and the function's own where it is differentiated."""
    for op in function.walk():
        # A derivative that is differentiated again saves values and their tangents: order 2.
        if isinstance(op, VjpOp):
            yield Target(op, op.body.block, 2 if op in activity.pullbacks else 1)
    if "differentiated" in function.attributes:
        first = next(op for op in function.body.block.ops if isinstance(op, ReadableOp))
        yield Target(first, function.body.block, 1)


def source_of(target: Target) -> str:
    """The line that holds a block, or the first line in it."""
    ops = [target.op, *(op for op in target.block.ops if isinstance(op, ReadableOp))]
    return next((op.source for op in ops if op.source != "<unknown>"), "<unknown>")


def inline_jits(block: Block) -> None:
    """Open plain nested jits, so that cuts can be made inside of them."""
    while found := [op for op in block.ops if isinstance(op, JitOp) and is_inlinable(op)]:
        for op in found:
            inline_body(op, PatternRewriter(op))


def is_loop_of_layers(op: Operation, activity: Activity) -> bool:
    """Whether an operation is a differentiated loop whose steps save more than they are given."""
    if not isinstance(op, ScanOp) or is_pinned(op):
        return False
    if not any(result in activity.values for result in op.results):
        return False
    carried = total_size(op.operands[op.num_consts :][: op.num_carry])
    return residual_bytes(op.regions[0].block, activity.values) > carried


@dataclass(frozen=True)
class SegmentLoss(ModulePass):
    """Cut differentiated straight-line code at its narrow places, and checkpoint the segments.

    Arguments:
        slack: bytes that a region may take beyond the least, for less that is rerun.
        rerun: how much of a region may be rerun for less memory, in forward passes.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016, arXiv 1604.06174);
    the schedule is that of `mixflow.compiler.analysis.schedule`.
    """

    name = "segment-loss"

    slack: int = 0
    rerun: float = 1.0

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        function = main_function(op)
        activity = find_activity(function)
        for target in list(targets(function, activity)):
            if not has_remark(target.op, self.name):
                self._segment(target, activity)

    def _segment(self, target: Target, activity: Activity) -> None:
        at = source_of(target)
        # A jit would be one unit, however much it holds: `jax.nn.softmax` and every jnp function
        # with a jit of its own is one.
        inline_jits(target.block)
        # Loops first: what a loop saves for the way back decides where the block around it is cut.
        for op in list(target.block.ops):
            if isinstance(op, ScanOp) and is_loop_of_layers(op, activity):
                self._checkpoint_layers(op, target.order, activity)
        line = line_of(target.block, activity.values, order=target.order)
        schedule = find_schedule(line.chain, self.slack, self.rerun)
        Segmenter(line, activity.values).wrap(schedule)
        runs = sum(isinstance(part, list) for part in schedule)
        if runs:
            which = "1 segment is" if runs == 1 else f"{runs} segments are"
            given = "it is" if runs == 1 else "they are"
            rewrote(target.op, self.name, f"{which} rerun from what {given} given", at)

    def _checkpoint_layers(self, op: ScanOp, order: int, activity: Activity) -> None:
        """The body of a loop over layers saves its inputs, and is cut like any other block."""
        body = op.regions[0].block
        if order * number_of(op.length) * residual_bytes(body, activity.values) <= self.slack:
            return
        self._segment(Target(op, body, order), activity)
        checkpoint_body(body).made_by = StringAttr(self.name)
        rewrote(op, self.name, f"each of the {op.length} steps saves its inputs, and is rerun")


class Segmenter:
    """Puts the runs of one block's units into checkpoints."""

    def __init__(self, line: Line, active: AbstractSet[SSAValue]) -> None:
        self._line = line
        self._active = active
        ops = [op for unit in line.units for op in unit if not is_pinned(op)]
        self._born = {value for op in ops for value in op.results}

    def wrap(self, schedule: Schedule) -> list[Operation]:
        """The operations of a schedule's units, its nested runs each in a checkpoint."""
        ops: list[Operation] = []
        for part in schedule:
            if isinstance(part, int):
                ops += self._line.units[part]
            else:
                ops.append(self._checkpoint(self.wrap(part)))
        return ops

    def _checkpoint(self, ops: Sequence[Operation]) -> CheckpointOp:
        """Move operations that follow each other into a checkpoint, where the last one stood."""
        # Only what is read outside of the segment comes out of it; all else is computed again.
        members = set(ops)
        made = [value for op in ops for value in op.results]
        results = [v for v in made if any(use.operation not in members for use in v.uses)]
        block, successor = ops[-1].parent, ops[-1].next_op
        assert block is not None
        assert successor is not None
        body = _Body(members, self._line.cheap)
        for op in ops:
            body.take(op)
        body.block.add_op(YieldOp.create(operands=results))
        checkpoint = CheckpointOp(body.inputs, Region(body.block), [one.type for one in results])
        checkpoint.inline = UnitAttr()
        checkpoint.barriers = self._barriers(body)
        checkpoint.made_by = StringAttr(SegmentLoss.name)
        self._born.update(checkpoint.results)
        block.insert_op_before(checkpoint, successor)
        yielded = body.block.last_op
        for old, new in zip(results, checkpoint.results, strict=True):
            old.replace_uses_with_if(
                new, lambda use: use.operation not in members and use.operation is not yielded
            )
        return checkpoint

    def _barriers(self, body: _Body) -> DenseArrayBase[I1]:
        """Which inputs the second run has to wait for; without any, XLA would merge the runs.

        Not for parameters: they are there all the time. So what it takes to read them, such as
        gathering them from other devices, is done once for both runs. But for those from which
        alone something is computed: XLA would save that from the first run to the second.
        """
        given = zip(body.inputs, body.block.args, strict=True)
        there = {arg for value, arg in given if value in self._active and value not in self._born}
        waiting = read_alone(body.block, there)
        barriers = [arg not in there or arg in waiting for arg in body.block.args]
        return DenseArrayBase.from_list(i1, barriers)


def read_alone(block: Block, args: AbstractSet[SSAValue]) -> set[SSAValue]:
    """Those of a block's arguments from which alone something is computed, not just laid out."""
    sources: dict[SSAValue, set[SSAValue]] = {arg: {arg} for arg in args}
    found = set[SSAValue]()
    for op in block.ops:
        reads = [value for value in op.operands if not isinstance(value.owner, LiteralOp)]
        if isinstance(op, YieldOp) or not reads or not sources.keys() >= set(reads):
            continue
        behind = set[SSAValue]().union(*(sources[value] for value in reads))
        if isinstance(op, LeafOp) and row_by_name(op.eqn).layout:
            sources.update(dict.fromkeys(op.results, behind))
        else:
            found |= behind
    return found


class _Body:
    """The block of a checkpoint that is being filled."""

    def __init__(self, members: set[Operation], cheap: set[Operation]) -> None:
        self.block = Block()
        self.inputs: list[SSAValue] = []
        self._members = members
        self._cheap = cheap
        self._local: dict[SSAValue, SSAValue] = {}

    def take(self, op: Operation) -> None:
        """Move an operation in, and let it read what is inside."""
        op.operands = [self._inside(operand) for operand in op.operands]
        op.detach()
        self.block.add_op(op)

    def _inside(self, value: SSAValue) -> SSAValue:
        """The value itself, a copy of what is cheap to have again, or an argument."""
        if value.owner in self._members:
            return value
        if value not in self._local:
            self._local[value] = self._copy(value) or self._argument(value)
        return self._local[value]

    def _argument(self, value: SSAValue) -> SSAValue:
        self.inputs.append(value)
        return self.block.insert_arg(value.type, len(self.block.args))

    def _copy(self, value: SSAValue) -> SSAValue | None:
        owner = value.owner
        is_constant = isinstance(owner, ConstantOp)  # a checkpoint carries no arrays of its own
        if not isinstance(owner, Operation) or owner not in self._cheap or is_constant:
            return None
        copy = owner.clone()
        copy.operands = [self._inside(operand) for operand in owner.operands]
        self.block.add_op(copy)
        made: dict[SSAValue, SSAValue] = dict(zip(owner.results, copy.results, strict=True))
        return made[value]
