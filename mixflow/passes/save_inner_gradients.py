"""A checkpointed step saves its inner gradients, so that rerunning it does not compute L twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Operation, Region, SSAValue
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)
from xdsl.rewriter import InsertPoint

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.analysis.residuals import is_read_backward
from mixflow.compiler.ir.dialects.attributes import aval_of
from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp, JitOp, ScanOp
from mixflow.compiler.ir.dialects.mixflow import DerivativeOp, NameOp, VjpOp
from mixflow.compiler.ir.dialects.remarks import declined, has_remark, rewrote
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.jaxprs.values import is_inexact
from mixflow.passes.checkpoint_inner_loop import is_level

LABEL = "mixflow.inner_gradient"
SAVED = "the gradient is saved, not computed again"
UNREAD = "the backward pass of {} does not read it: there is nothing to save"


def gradients_of_step(region: Region) -> Iterator[VjpOp]:
    """The rewritten gradients that a step takes once: not those in a loop of its own.

    One that is not rewritten has its forward pass run again for the residuals in any case.
    """
    for op in region.block.ops:
        if isinstance(op, VjpOp) and op.rule is not None:
            yield op
        elif isinstance(op, JitOp):
            yield from gradients_of_step(op.regions[0])


def levels_around(op: Operation | None) -> Iterator[CheckpointOp]:
    """The checkpointed step that an operation is or is in, and each level of steps around that."""
    while op is not None and not isinstance(op, DerivativeOp):
        if is_level(op):
            yield op
        op = op.parent_op()


@dataclass
class SaveGradients(RewritePattern):
    """Name a step's gradients, and let the step and levels around it save them.

    Arguments:
        active: the values that the differentiation reaches.
        levels: how many levels save them, the step first; 0 for all.
    """

    active: set[SSAValue]
    levels: int

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: CheckpointOp, rewriter: PatternRewriter) -> None:
        if not is_level(op):
            return
        around = list(levels_around(op))
        levels = around[: self.levels] if self.levels else around
        for pullback in gradients_of_step(op.body):
            if not has_remark(pullback, SaveInnerGradients.name):
                self._save(pullback, levels, rewriter)

    def _save(self, op: VjpOp, levels: list[CheckpointOp], rewriter: PatternRewriter) -> None:
        needed = self._needed(op, len(levels))
        for gradient in needed:
            _name(gradient, op, rewriter)
        if needed:
            for level in levels:
                level.saved = StringAttr(LABEL)
            rewrote(op, SaveInnerGradients.name, SAVED)
        else:
            declined(op, SaveInnerGradients.name, UNREAD.format(described(levels[0])))
        rewriter.notify_op_modified(op)

    def _needed(self, op: VjpOp, levels: int) -> list[SSAValue]:
        """The gradients whose value somebody asks for after the first forward pass.

        A level that saves them needs every one, to get at the later states.

        Arguments:
            levels: how many save them.
        """
        gradients = [value for value in op.gradients if is_inexact(aval_of(value))]
        if levels > 1:
            # The first run of a level is forgotten but for its inputs. Its second run updates θ by
            # the gradients again, to get at the state that each step starts from.
            return gradients
        return [value for value in gradients if is_read_backward(value, self.active)]


def described(step: CheckpointOp) -> str:
    """What a step belongs to, in words."""
    loop = step.parent_op()
    return f"this loop (length {loop.length})" if isinstance(loop, ScanOp) else "this step"


def _name(gradient: SSAValue, op: VjpOp, rewriter: PatternRewriter) -> None:
    named = NameOp(gradient, LABEL)
    rewriter.insert(named, InsertPoint.after(op))
    gradient.replace_uses_with_if(named.output, lambda use: use.operation is not named)


@dataclass(frozen=True)
class SaveInnerGradients(ModulePass):
    """A checkpointed step saves its inner gradients, and does not compute them twice.

    Where the backward pass reads no gradient, as in plain gradient descent at a fixed rate, there
    is nothing to save. Source: Kemaev et al. (ICML 2025, arXiv 2505.00793).

    Arguments:
        levels: how many levels of a loop save them, the step first; 0 for all. With one, a level
            that is rerun computes its steps' gradients again, and saves those of its own steps.
    """

    name = "save-inner-gradients"
    levels: int = 0

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        active = find_activity(main_function(op)).values
        pattern = SaveGradients(active, self.levels)
        PatternRewriteWalker(pattern, apply_recursively=False).rewrite_module(op)
