"""A checkpointed step saves its inner gradients, so that recomputing it does not run L again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Region
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)
from xdsl.rewriter import InsertPoint

from mixflow.compiler.dialects.jaxpr import CheckpointOp, JitOp
from mixflow.compiler.dialects.mixflow import NameOp, VjpOp
from mixflow.compiler.dialects.remarks import rewrote

LABEL = "mixflow.inner_gradient"


def gradients_of_step(region: Region) -> Iterator[VjpOp]:
    """The self-adjoint gradients that a step takes once: not those in a loop of its own.

    One that is not self-adjoint has its forward pass run again for the residuals in any case.
    """
    for op in region.block.ops:
        if isinstance(op, VjpOp) and op.self_adjoint is not None:
            yield op
        elif isinstance(op, JitOp):
            yield from gradients_of_step(op.regions[0])


class SaveGradients(RewritePattern):
    """Name the gradients inside a checkpoint that a pass has made, and let it save them."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: CheckpointOp, rewriter: PatternRewriter) -> None:
        if op.equation is not None or op.saved is not None:
            return
        pullbacks = list(gradients_of_step(op.body))
        if not pullbacks:
            return
        for pullback in pullbacks:
            self._name(pullback, rewriter)
        op.saved = StringAttr(LABEL)
        rewriter.notify_op_modified(op)

    def _name(self, pullback: VjpOp, rewriter: PatternRewriter) -> None:
        for gradient in pullback.gradients:
            named = NameOp(gradient, LABEL)
            rewriter.insert(named, InsertPoint.after(pullback))
            gradient.replace_uses_with_if(
                named.output, lambda use, op=named: use.operation is not op
            )
        rewrote(pullback, SaveInnerGradients.name, "the gradient is saved, not computed again")


@dataclass(frozen=True)
class SaveInnerGradients(ModulePass):
    """A checkpointed step keeps its inner gradients, and does not compute them twice.

    Source: Kemaev et al. (ICML 2025, arXiv 2505.00793).
    """

    name = "save-inner-gradients"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        PatternRewriteWalker(SaveGradients(), apply_recursively=False).rewrite_module(op)
