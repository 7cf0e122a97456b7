"""The body of a differentiated inner loop becomes a checkpoint: a step saves its inputs only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp
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
from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp, ReadableOp, ScanOp, YieldOp
from mixflow.compiler.ir.dialects.remarks import declined, has_remark, rewrote
from mixflow.compiler.ir.emitter import main_function
from mixflow.passes.inner_loops.find import (
    are_left_to_user,
    inner_loops,
    is_inner_loop,
    users_steps,
)
from mixflow.passes.inner_loops.nested_scans import nest_scan


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
    """Checkpoint the bodies of some loops, after nesting those.

    Arguments:
        levels: the loops, and how deep each is nested at most.
        respect: whether a step that the user has put in a `jax.checkpoint` stays as it is.
    """

    levels: Mapping[ScanOp, int]
    respect: bool = False

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: ScanOp, rewriter: PatternRewriter) -> None:
        name = CheckpointInnerLoop.name
        if op not in self.levels or has_remark(op, name):
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
            self._checkpoint(op, self.levels[op], theirs, rewriter)
            return
        rewriter.notify_op_modified(op)

    def _checkpoint(
        self, op: ScanOp, levels: int, replaced: list[CheckpointOp], rewriter: PatternRewriter
    ) -> None:
        # One around the whole step would keep its gradients from being saved, and its levels apart.
        for one in replaced:
            inline_body(one, rewriter)
        is_known = isinstance(op.params["length"], int)  # jax.export has symbolic ones
        nest = choose_nest(op.length, levels if is_known else 1)
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
        loops: the loops that are meant, by their names (`train.py:30`), with a number of levels
            for each. A loop that holds such loops may be among them: a loop over epochs then saves
            what each epoch begins with. Without names all loops that take gradient steps
            themselves are meant, with one number for all of them.
        respect: leave a step alone that the user has put in a `jax.checkpoint`. Without it, one
            that has no policy is replaced.
    """

    name = "checkpoint-inner-loop"
    levels: int | tuple[int, ...] = 1
    loops: tuple[str, ...] = ()
    respect: bool = False

    def __post_init__(self) -> None:
        for levels in self._numbers:
            if levels < 1:
                raise ValueError(f"levels={levels}: a loop has at least one level")
        if len(self._numbers) != max(len(self.loops), 1):
            given = f"{len(self._numbers)} numbers of levels for {len(self.loops)} named loops"
            raise ValueError(f"{given}: give one for each, or one number without names")

    @property
    def _numbers(self) -> tuple[int, ...]:
        return (self.levels,) if isinstance(self.levels, int) else self.levels

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        pattern = CheckpointBody(self._meant(main_function(op)), self.respect)
        # A loop's body is copied when it is nested: the loops inside it come first.
        PatternRewriteWalker(pattern, walk_regions_first=True).rewrite_module(op)

    def _meant(self, function: FuncOp) -> dict[ScanOp, int]:
        """The loops to be checkpointed, each with its levels."""
        loops = inner_loops(function, find_activity(function))
        if not self.loops:
            return {op: self._numbers[0] for op in loops.values() if is_inner_loop(op)}
        wanted = dict(zip(self.loops, self._numbers, strict=True))
        missing = [name for name in wanted if name not in loops]
        if missing:
            first = next(op for op in function.body.block.ops if isinstance(op, ReadableOp))
            there = ", ".join(loops) or "none"
            declined(first, self.name, f"there is no inner loop {missing[0]}; there are: {there}")
        return {loops[name]: levels for name, levels in wanted.items() if name in loops}
