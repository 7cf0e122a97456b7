"""A value and the pullback of the same function at the same point become one operation."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, UnitAttr
from xdsl.ir import Operation
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)
from xdsl.rewriter import InsertPoint
from xdsl.traits import is_side_effect_free

from mixflow.compiler.ir.dialects.mixflow import PrimalOp, VjpOp
from mixflow.compiler.ir.dialects.remarks import move_remarks


def find_primal(op: VjpOp) -> PrimalOp | None:
    """The operation in the same block that gives the value of what `op` pulls back through.

    It stands before `op`, and is the last that does: a jit that holds both and is called twice is
    dissolved to value, pullback, value, pullback, and each pullback has a value of its own.
    """
    # Of f's inputs any would do; the last belongs to the point, so few operations read it.
    inputs = op.operands[: op.point_stop]
    last: PrimalOp | None = None
    for use in inputs[-1].uses:
        other = use.operation
        if (
            isinstance(other, PrimalOp)
            and other.differentiand is op.differentiand
            and tuple(other.operands) == tuple(inputs)
            and other.is_before_in_block(op)
            and (last is None or last.is_before_in_block(other))
        ):
            last = other
    return last


def cotangent_slice(op: VjpOp, primal: PrimalOp) -> list[Operation] | None:
    """What computes the cotangents after `primal`, in order.

    None where that needs the value, or has effects, whose order is not to be changed.
    """
    assert op.parent is not None
    order = {other: position for position, other in enumerate(op.parent.ops)}
    found: set[Operation] = set()
    pending = list(op.operands[op.point_stop :])
    while pending:
        owner = pending.pop().owner
        if owner is primal:
            return None
        if isinstance(owner, Operation) and owner not in found and order[owner] > order[primal]:
            found.add(owner)
            pending.extend(owner.operands)
    if not all(map(is_side_effect_free, found)):
        return None
    return sorted(found, key=order.__getitem__)


def with_value(op: VjpOp, primal: PrimalOp, rewriter: PatternRewriter) -> VjpOp:
    """A pullback and the value of the same function at the same point, as one operation."""
    fused = VjpOp.create(
        operands=op.operands,
        result_types=[*primal.result_types, *op.result_types],
        properties={**op.properties, "with_value": UnitAttr()},
        regions=[rewriter.move_region_contents_to_new_regions(op.body)],
    )
    move_remarks(op, fused)
    return fused


class FusePattern(RewritePattern):
    """Move what the cotangents need before the value, and put the fused operation there."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: VjpOp, rewriter: PatternRewriter) -> None:
        if op.with_value is not None:
            return
        primal = find_primal(op)
        needed = None if primal is None else cotangent_slice(op, primal)
        if primal is None or needed is None:
            return
        # `v = f(x); w = g(c); x̄ = pull(w)`: w is computed first, so that v and x̄ can be one. Where
        # w depends on v (`pull(v * 0.5)`), two operations remain.
        for other in needed:
            other.detach()
            rewriter.insert(other, InsertPoint.before(primal))
        fused = with_value(op, primal, rewriter)
        rewriter.insert(fused, InsertPoint.before(primal))
        count = len(primal.results)
        rewriter.replace(primal, [], fused.results[:count])
        rewriter.replace(op, [], fused.results[count:])


@dataclass(frozen=True)
class FuseValueAndPullback(ModulePass):
    """A value and its gradient become one operation, so that f runs forward once for both."""

    name = "fuse-value-and-pullback"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        PatternRewriteWalker(FusePattern(), apply_recursively=False).rewrite_module(op)
