"""Reverse over reverse becomes forward over reverse: active pullbacks get the symmetric rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Operation
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)

from mixflow.compiler.analysis.activity import Activity, find_activity
from mixflow.compiler.derivative.differentiand import Rule
from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.dialects.remarks import declined, has_remark, rewrote
from mixflow.compiler.ir.emitter import main_function
from mixflow.passes.outer_terms import take_out

WHAT = "the pullback of this gradient is taken as its pushforward (forward over reverse)"


POLICY = "the policy of your jax.checkpoint is not consulted in this gradient's derivative"


def has_policy(op: Operation) -> TypeGuard[CheckpointOp]:
    """Whether an operation is a `jax.checkpoint` of the user's with a policy."""
    if not isinstance(op, CheckpointOp) or op.equation is None:
        return False
    return op.equation.data.params.get("policy") is not None


def mark(op: VjpOp, rule: Rule, name: str, what: str) -> None:
    """Give a pullback a rule, and say so. No rule consults the policies of checkpoints in it."""
    op.rule = StringAttr(rule.value)
    rewrote(op, name, what)
    for checkpoint in filter(has_policy, op.body.walk()):
        declined(op, name, f"{POLICY} ({checkpoint.source})")


@dataclass
class MarkSymmetric(RewritePattern):
    """Mark a pullback that is differentiated again, where its function is a true gradient's."""

    activity: Activity

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: VjpOp, rewriter: PatternRewriter) -> None:
        name = ForwardOverReverse.name
        if op not in self.activity.pullbacks or op.rule is not None or has_remark(op, name):
            return
        soundness = op.differentiand.soundness
        active = [operand in self.activity.values for operand in op.operands[: op.point_stop]]
        aux = self._reads_aux(op)
        suspects = soundness.suspects or soundness.singular([False] * len(active), aux=aux)
        if not suspects and soundness.singular(active, aux=False):
            split = take_out(op, active, rewriter)
            suspects = soundness.singular(active, aux=False) if split is None else ()
            op = split or op
        if not suspects:
            mark(op, Rule.SYMMETRIC, name, WHAT)
        for suspect in suspects:
            declined(op, name, str(suspect))
        rewriter.notify_op_modified(op)

    def _reads_aux(self, op: VjpOp) -> bool:
        """Whether the outer differentiation reaches an output that has no cotangent."""
        outputs = op.results if op.with_value is not None else ()
        pairs = zip(outputs, op.differentiand.carries, strict=False)
        return any(output in self.activity.values for output, carries in pairs if not carries)


@dataclass(frozen=True)
class ForwardOverReverse(ModulePass):
    """The symmetric derivative rule for every gradient inside a differentiated region.

    Source: Kemaev et al. (ICML 2025, arXiv 2505.00793); `docs/derivative-rule.md`.
    """

    name = "forward-over-reverse"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        pattern = MarkSymmetric(find_activity(main_function(op)))
        PatternRewriteWalker(pattern, apply_recursively=False).rewrite_module(op)
