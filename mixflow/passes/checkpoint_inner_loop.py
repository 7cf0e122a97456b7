"""The body of a differentiated inner loop becomes a checkpoint: a step saves its inputs only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Block, Operation, Region
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)
from xdsl.traits import is_side_effect_free

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.analysis.nesting import Nest, choose_nest
from mixflow.compiler.ir.building import inline_body
from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp, ScanOp, YieldOp
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.dialects.remarks import declined, has_remark, rewrote
from mixflow.compiler.ir.emitter import main_function
from mixflow.passes.nested_scans import nest_scan


def is_inner_loop(op: ScanOp) -> bool:
    """Whether a loop takes gradient steps itself, not by way of a loop inside it."""
    return any(isinstance(other, VjpOp) and _nearest_loop(other, op) is op for other in op.walk())


def _nearest_loop(op: Operation, root: ScanOp) -> Operation | None:
    parent = op.parent_op()
    while parent is not None and parent is not root and not isinstance(parent, ScanOp):
        parent = parent.parent_op()
    return parent


def is_checkpointed(op: ScanOp) -> bool:
    """Whether every gradient in the body stands in a checkpoint already."""
    bare = [other for other in op.regions[0].block.ops if not isinstance(other, CheckpointOp)]
    return not any(map(_has_gradient, bare))


def users_checkpoints(op: ScanOp) -> list[CheckpointOp]:
    """The user's checkpoints in a loop's body that gradients stand in."""
    found = [one for one in op.regions[0].block.ops if isinstance(one, CheckpointOp)]
    return [one for one in found if one.equation is not None and _has_gradient(one)]


def has_policy(op: CheckpointOp) -> bool:
    """Whether a user's checkpoint says what it saves."""
    return op.equation is not None and op.equation.data.params["policy"] is not None


def users_steps(op: ScanOp) -> list[CheckpointOp]:
    """The user's checkpoints that hold the step; none where a gradient stands outside of them."""
    return users_checkpoints(op) if is_checkpointed(op) else []


def are_left_to_user(theirs: list[CheckpointOp], *, respect: bool) -> bool:
    """Whether checkpoints of the user's around a step are to stay.

    Arguments:
        theirs: from `users_steps`.
        respect: whether those that do not say what they save are to stay as well.
    """
    return any(respect or has_policy(one) for one in theirs)


def _has_gradient(op: Operation) -> bool:
    return any(isinstance(inner, VjpOp) for inner in op.walk())


def is_level(op: Operation | None) -> TypeGuard[CheckpointOp]:
    """Whether an operation is a checkpoint that this pass has made: a step, or a level of steps."""
    name = CheckpointInnerLoop.name
    return isinstance(op, CheckpointOp) and op.made_by is not None and op.made_by.data == name


def checkpoint_body(block: Block) -> CheckpointOp:
    """Put everything that a block does into one checkpoint."""
    # A region sees its own arguments and nothing outside: the inner block has the same ones, and
    # the checkpoint is given the outer block's.
    inner = Block(arg_types=block.arg_types)
    for op in list(block.ops):
        op.detach()
        inner.add_op(op)
    for old, new in zip(block.args, inner.args, strict=True):
        old.replace_all_uses_with(new)
    yielded = inner.last_op
    assert yielded is not None
    types = [value.type for value in yielded.operands]
    checkpoint = CheckpointOp(block.args, Region(inner), types)
    block.add_ops([checkpoint, YieldOp.create(operands=checkpoint.results)])
    return checkpoint


@dataclass
class CheckpointBody(RewritePattern):
    """Checkpoint the body of each loop that was found active, after nesting it."""

    active: set[ScanOp]
    levels: int
    respect: bool = False

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: ScanOp, rewriter: PatternRewriter) -> None:
        name = CheckpointInnerLoop.name
        if op not in self.active or has_remark(op, name) or not is_inner_loop(op):
            return
        # Its body is a step that this pass has made already: the pass has run before.
        if is_level(op.regions[0].block.first_op):
            return
        theirs = users_steps(op)
        if are_left_to_user(theirs, respect=self.respect):
            what = "it" if self.respect else "its policy"
            why = f"the step is in a jax.checkpoint of yours already, and {what} is left to you"
            declined(op, name, why)
        elif op.eqn.effects:
            declined(op, name, "the step has effects, which must not happen twice")
        elif not is_side_effect_free(op):
            why = "a custom rule in the step has effects, which must not happen twice"
            declined(op, name, why)
        else:
            self._checkpoint(op, theirs, rewriter)
            return
        rewriter.notify_op_modified(op)

    def _checkpoint(
        self, op: ScanOp, replaced: list[CheckpointOp], rewriter: PatternRewriter
    ) -> None:
        # One around the whole step would keep its gradients from being saved, and its levels apart.
        for one in replaced:
            inline_body(one, rewriter)
        is_known = isinstance(op.params["length"], int)  # jax.export has symbolic ones
        nest = choose_nest(op.length, self.levels if is_known else 1)
        # Every level is a checkpoint, the step too. Going back, a level reruns its steps, and
        # each step saves its inputs then: K levels save K times the states of one level's steps.
        loops = [op] if nest.levels == 1 else nest_scan(op, nest, rewriter)
        for loop in loops:
            checkpoint = checkpoint_body(loop.regions[0].block)
            checkpoint.made_by = StringAttr(CheckpointInnerLoop.name)
            rewriter.notify_op_modified(loop)
        instead = ", in the place of your jax.checkpoint" if replaced else ""
        rewrote(loops[0], CheckpointInnerLoop.name, describe(nest) + instead)


def describe(nest: Nest) -> str:
    """What was done to a loop, for the report."""
    if nest.levels == 1:
        return f"each of the {nest.steps} steps saves its inputs and is rerun"
    return f"{nest.steps} steps as {nest}: each level saves its inputs, and reruns its steps"


@dataclass(frozen=True)
class CheckpointInnerLoop(ModulePass):
    """Rematerialise the steps of a loop that takes gradient steps, in nested levels if asked to.

    Arguments:
        levels: how deep the steps are nested at most. T steps in K levels save about K·T^(1/K)
            states of the loop in place of T, and run forward K - 1 times more.
        respect: leave a step alone that the user has put in a `jax.checkpoint`. Without it, one
            that has no policy is replaced.
    """

    name = "checkpoint-inner-loop"
    levels: int = 1
    respect: bool = False

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels={self.levels}: a loop has at least one level")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        active = find_activity(main_function(op)).loops
        # A loop's body is copied when it is nested: the loops inside it come first.
        pattern = CheckpointBody(active, self.levels, self.respect)
        PatternRewriteWalker(pattern, walk_regions_first=True).rewrite_module(op)
