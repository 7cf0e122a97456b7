"""Canonicalisation patterns of the dialects' operations; xDSL's `canonicalize` applies them."""

from __future__ import annotations

from xdsl.dialects.builtin import UnitAttr
from xdsl.ir import Operation
from xdsl.pattern_rewriter import PatternRewriter, RewritePattern, op_type_rewrite_pattern
from xdsl.rewriter import InsertPoint

from mixflow.compiler.dialects import jaxpr as jx
from mixflow.compiler.dialects import mixflow as mf
from mixflow.compiler.dialects.remarks import move_remarks


class InlineJitAroundDerivative(RewritePattern):
    """Dissolve a plain nested `jit` that holds a derivative, so that passes see its context.

    One with shardings, donation or options of its own means something, and stays.
    """

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: jx.JitOp, rewriter: PatternRewriter) -> None:
        if not _is_plain(op) or not _holds_derivative(op):
            return
        block = op.regions[0].block
        yielded = block.last_op
        assert yielded is not None
        results = list(yielded.operands)
        rewriter.erase(yielded)
        rewriter.inline_block(block, InsertPoint.before(op), op.operands)
        operands = dict(zip(block.args, op.operands, strict=True))
        rewriter.replace(op, [], [operands.get(value, value) for value in results])


def _is_plain(op: jx.JitOp) -> bool:
    params = op.params
    specified = (*params["in_shardings"], *params["out_shardings"])
    layouts = (*params["in_layouts"], *params["out_layouts"])
    return (
        all(type(sharding).__name__ == "UnspecifiedValue" for sharding in specified)
        and all(layout is None for layout in layouts)
        and not any(params["donated_invars"])
        and not params["compiler_options_kvs"]
        and not params["keep_unused"]
    )


def _holds_derivative(op: Operation) -> bool:
    return any(isinstance(inner, mf.DerivativeOp) for inner in op.walk())


class DropUnusedValue(RewritePattern):
    """A fused derivative whose value nobody reads is a pullback alone."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: mf.VjpOp, rewriter: PatternRewriter) -> None:
        values = op.results[: len(op.results) - len(op.gradients)]
        if op.with_value is None or any(value.uses for value in values):
            return
        properties = {name: prop for name, prop in op.properties.items() if name != "with_value"}
        alone = mf.VjpOp.create(
            operands=op.operands,
            result_types=[value.type for value in op.gradients],
            properties=properties,
            regions=[rewriter.move_region_contents_to_new_regions(op.body)],
        )
        move_remarks(op, alone)
        rewriter.replace(op, alone, [*(None for _ in values), *alone.results])


def with_value(op: mf.VjpOp, primal: mf.PrimalOp, rewriter: PatternRewriter) -> mf.VjpOp:
    """A pullback and the value of the same function at the same point, as one operation."""
    fused = mf.VjpOp.create(
        operands=op.operands,
        result_types=[*primal.result_types, *op.result_types],
        properties={**op.properties, "with_value": UnitAttr()},
        regions=[rewriter.move_region_contents_to_new_regions(op.body)],
    )
    move_remarks(op, fused)
    return fused
