"""Simplify, so that later passes see less and match more."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    GreedyRewritePatternApplier,
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)
from xdsl.transforms.dead_code_elimination import region_dce

from mixflow.compiler.ir.building import inline_body
from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.ir.dialects import mixflow as mf
from mixflow.compiler.ir.dialects.remarks import move_remarks


class InlineJitAroundDerivative(RewritePattern):
    """Inline a plain nested `jit` that holds a derivative, so that passes see its context.

    One with shardings, donation or options of its own means something, and stays.
    """

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: jx.JitOp, rewriter: PatternRewriter) -> None:
        has_derivative = any(isinstance(inner, mf.DerivativeOp) for inner in op.walk())
        if has_derivative and is_inlinable(op):
            inline_body(op, rewriter)


def is_inlinable(op: jx.JitOp) -> bool:
    """Whether a nested jit means no more than its body."""
    return _is_plain(op) and not _constants_would_be_lost(op)


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


def _constants_would_be_lost(op: jx.JitOp) -> bool:
    """Only a whole function and a derivative's function may carry arrays of their own."""
    carries = any(isinstance(inner, jx.ConstantOp) for inner in op.regions[0].block.ops)
    return carries and not isinstance(op.parent_op(), (FuncOp, mf.DerivativeOp))


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


@dataclass(frozen=True)
class Canonicalize(ModulePass):
    """Dissolve plain jits around derivatives, drop values that nobody reads, and dead code."""

    name = "canonicalize"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        patterns = GreedyRewritePatternApplier([InlineJitAroundDerivative(), DropUnusedValue()])
        PatternRewriteWalker(patterns, post_walk_func=region_dce).rewrite_module(op)
