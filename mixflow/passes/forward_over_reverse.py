"""Reverse over reverse becomes forward over reverse: active pullbacks are self-adjoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

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

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.dialects.jaxpr import CheckpointOp
from mixflow.compiler.dialects.mixflow import VjpOp
from mixflow.compiler.dialects.remarks import declined, has_remark, rewrote
from mixflow.compiler.emitter import main_function

WHAT = "the pullback of this gradient is taken as its pushforward (forward over reverse)"


POLICY = "the policy of your jax.checkpoint is not consulted in this gradient's derivative"


def has_policy(op: Operation) -> TypeGuard[CheckpointOp]:
    """Whether an operation is a `jax.checkpoint` of the user's with a policy."""
    if not isinstance(op, CheckpointOp) or op.equation is None:
        return False
    return op.equation.data.params.get("policy") is not None


@dataclass
class MarkSelfAdjoint(RewritePattern):
    """Mark a pullback that is differentiated again, where its function is a true gradient's."""

    active: set[VjpOp]

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: VjpOp, rewriter: PatternRewriter) -> None:
        name = ForwardOverReverse.name
        if op not in self.active or op.self_adjoint is not None or has_remark(op, name):
            return
        if op.differentiand.symmetric:
            op.self_adjoint = UnitAttr()
            rewrote(op, name, WHAT)
            for checkpoint in filter(has_policy, op.body.walk()):
                declined(op, name, f"{POLICY} ({checkpoint.source})")
        for suspect in op.differentiand.suspects:
            declined(op, name, str(suspect))
        if has_remark(op, name):
            rewriter.notify_op_modified(op)


@dataclass(frozen=True)
class ForwardOverReverse(ModulePass):
    """The symmetric derivative rule for every gradient inside a differentiated region.

    Source: Kemaev et al. (ICML 2025, arXiv 2505.00793); `docs/derivative-rule.md`.
    """

    name = "forward-over-reverse"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        active = find_activity(main_function(op)).pullbacks
        PatternRewriteWalker(MarkSelfAdjoint(active)).rewrite_module(op)
