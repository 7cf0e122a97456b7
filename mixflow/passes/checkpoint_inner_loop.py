"""The body of a differentiated inner loop becomes a checkpoint: a step keeps its inputs only."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, Region
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.dialects.jaxpr import CheckpointOp, ScanOp, YieldOp
from mixflow.compiler.dialects.mixflow import VjpOp
from mixflow.compiler.dialects.remarks import declined, has_remark, rewrote
from mixflow.compiler.emitter import main_function


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
    return not any(isinstance(inner, VjpOp) for other in bare for inner in other.walk())


def checkpoint_body(block: Block) -> CheckpointOp:
    """Put everything that a block does into one checkpoint."""
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
    """Checkpoint the body of each loop that was found active."""

    active: set[ScanOp]

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: ScanOp, rewriter: PatternRewriter) -> None:
        name = CheckpointInnerLoop.name
        if op not in self.active or has_remark(op, name) or not is_inner_loop(op):
            return
        if is_checkpointed(op):
            declined(op, name, "the step is in a jax.checkpoint of yours already")
        elif op.info.effects:
            declined(op, name, "the step has effects, which must not happen twice")
        else:
            checkpoint_body(op.regions[0].block)
            rewrote(op, name, f"each of the {op.length} steps keeps its inputs and is recomputed")
        rewriter.notify_op_modified(op)


@dataclass(frozen=True)
class CheckpointInnerLoop(ModulePass):
    """One level of rematerialisation: the step of a loop that takes gradient steps."""

    name = "checkpoint-inner-loop"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        active = find_activity(main_function(op)).loops
        PatternRewriteWalker(CheckpointBody(active)).rewrite_module(op)
