"""Reverse over reverse becomes reverse over forward: other pullbacks get the transposed rule."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.derivative.differentiand import Rule
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.dialects.remarks import declined, has_remark
from mixflow.compiler.ir.emitter import main_function
from mixflow.passes.forward_over_reverse import mark

WHAT = "the pullback of this gradient is taken as that of the pushforward (reverse over forward)"


@dataclass
class MarkTransposed(RewritePattern):
    """Mark a pullback that is differentiated again and has no rule yet, where that can be built."""

    active: set[VjpOp]

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: VjpOp, rewriter: PatternRewriter) -> None:
        name = ReverseOverForward.name
        if op not in self.active or op.rule is not None or has_remark(op, name):
            return
        obstacles = op.differentiand.soundness.obstacles
        if not obstacles:
            mark(op, Rule.TRANSPOSED, name, WHAT)
        for obstacle in obstacles:
            declined(op, name, str(obstacle))
        rewriter.notify_op_modified(op)


@dataclass(frozen=True)
class ReverseOverForward(ModulePass):
    """The transposed derivative rule for gradients that did not get the symmetric one.

    After `forward-over-reverse` it takes what that pass had to decline; without that pass it takes
    every gradient inside a differentiated region. `docs/derivative-rule.md` has the rule.
    """

    name = "reverse-over-forward"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        active = find_activity(main_function(op)).pullbacks
        PatternRewriteWalker(MarkTransposed(active)).rewrite_module(op)
