"""The first step of an inner loop is taken out of it where less of it is differentiated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr, UnitAttr
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)
from xdsl.rewriter import InsertPoint
from xdsl.traits import is_side_effect_free

from mixflow.compiler.analysis.activity import active_in_first_step, find_activity
from mixflow.compiler.ir.building import build_before, inline_body
from mixflow.compiler.ir.dialects.attributes import EquationAttr
from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp, ScanOp
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.dialects.remarks import rewrote
from mixflow.compiler.ir.emitter import main_function
from mixflow.passes.checkpoint_inner_loop import CheckpointInnerLoop
from mixflow.passes.indexed_inputs import index_inputs
from mixflow.passes.inner_loops.find import is_inner_loop
from mixflow.passes.inner_loops.nested_scans import stacked_type

LESS = "the first of {} steps stands before the loop: no cotangent comes back to its state"
ALONE = "the one step stands outside of its loop, which XLA would open, and saves its inputs"


def gains_from_peeling(op: ScanOp, active: set[SSAValue]) -> bool:
    """Whether a loop's first step has a gradient that is differentiated in less than later.

    Arguments:
        op: a loop.
        active: the values that a cotangent comes back to.
    """
    if not is_peelable(op):
        return False
    points = _points(op)
    return points & active > points & active_in_first_step(op, active)


def is_peelable(op: ScanOp) -> bool:
    """Whether a loop's first step may stand before it: steps without effects, of a known number.

    A `jax.checkpoint` of the user's may rely on being in a loop, and keeps the step there. So may a
    rule that is not linear: in a loop JAX calls it with zeros where outside it does not call it.
    """
    if not isinstance(op.params["length"], int) or op.length < 1 or not is_side_effect_free(op):
        return False
    if not is_inner_loop(op) or any(isinstance(one, CheckpointOp) for one in op.walk()):
        return False
    return all(one.differentiand.soundness.is_linear for one in _gradients(op))


@dataclass
class Peel(RewritePattern):
    """Peel loops whose first step has a gradient that is differentiated in less than later.

    A loop of one step, such as may be left then, is opened: XLA would do that, and undo its
    checkpoint.
    """

    active: set[SSAValue]

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: ScanOp, rewriter: PatternRewriter) -> None:
        if not is_peelable(op):
            return
        points = _points(op)
        later, first = points & self.active, points & active_in_first_step(op, self.active)
        if not later or (first >= later and op.length > 1):
            return
        what = LESS.format(op.length) if later > first else ALONE
        op = index_inputs(op, self.active, rewriter)
        step, rest = _peel(op, rewriter)
        rewrote(next(_gradients(step)), PeelInactiveStep.name, what, op.source)
        if not first:
            # Nothing in it has a derivative that is differentiated: it need not be rerun.
            inline_body(step, rewriter)
        if rest is not None:
            self._mark(rest)

    def _mark(self, rest: ScanOp) -> None:
        """What the other steps start from is as active as what they carry."""
        carried = rest.regions[0].block.args[rest.num_consts :]
        pairs = zip(rest.operands[rest.num_consts :][: rest.num_carry], carried, strict=False)
        self.active.update(operand for operand, arg in pairs if arg in self.active)


def _peel(op: ScanOp, rewriter: PatternRewriter) -> tuple[CheckpointOp, ScanOp | None]:
    """Replace a loop by its first step and, if there are others, the loop of those."""
    start, stop, length = op.num_consts, op.num_consts + op.num_carry, op.length
    xs = op.operands[stop:]
    backwards = op.params["reverse"]
    slices = build_before(op, partial(_cut, length, backwards), xs, rewriter)
    step = _step(op, [*op.operands[:stop], *slices[: len(xs)]])
    rewriter.insert(step, InsertPoint.before(op))
    carry, ys, rest = step.results[: op.num_carry], step.results[op.num_carry :], None
    if length > 1:
        rest = _rest(op, [*op.operands[:start], *carry, *slices[len(xs) :]], rewriter)
        rewriter.insert(rest, InsertPoint.before(op))
        carry, ys = rest.results[: op.num_carry], [*ys, *rest.results[op.num_carry :]]
    joined = build_before(op, partial(_join, length, backwards), ys, rewriter)
    rewriter.replace(op, [], [*carry, *joined])
    return step, rest


def _gradients(op: Operation) -> Iterator[VjpOp]:
    return (inner for inner in op.walk() if isinstance(inner, VjpOp))


def _points(op: Operation) -> set[SSAValue]:
    """What the derivatives in an operation are given."""
    return {value for gradient in _gradients(op) for value in gradient.operands}


def _step(op: ScanOp, operands: Sequence[SSAValue]) -> CheckpointOp:
    """A copy of a loop's step that saves its inputs only, as `checkpoint-inner-loop` has it."""
    body = op.regions[0].clone()
    yielded = body.block.last_op
    assert yielded is not None
    step = CheckpointOp(operands, body, [value.type for value in yielded.operands])
    step.made_by = StringAttr(CheckpointInnerLoop.name)
    step.inline = UnitAttr()
    return step


def _rest(op: ScanOp, operands: Sequence[SSAValue], rewriter: PatternRewriter) -> ScanOp:
    """The loop without its first step. The body moves."""
    body = rewriter.move_region_contents_to_new_regions(op.regions[0])
    yielded = body.block.last_op
    assert yielded is not None
    length = op.length - 1
    params = {**op.params, "length": length, "unroll": min(op.params["unroll"], length)}
    stacked = yielded.operands[op.num_carry :]
    return ScanOp.create(
        operands=operands,
        result_types=[
            *(value.type for value in yielded.operands[: op.num_carry]),
            *(stacked_type(value, (length,)) for value in stacked),
        ],
        properties={"equation": EquationAttr(replace(op.eqn, params=params))},
        regions=[body],
    )


def _cut(length: int, backwards: bool, *xs: Any) -> list[Any]:
    """Of all that the loop runs over, what the first step gets; then the rest, if there is any."""
    first, start = (length - 1, 0) if backwards else (0, 1)
    ours = [jax.lax.index_in_dim(x, first, keepdims=False) for x in xs]
    if length == 1:
        return ours
    return [*ours, *(jax.lax.slice_in_dim(x, start, start + length - 1) for x in xs)]


def _join(length: int, backwards: bool, *ys: Any) -> list[Any]:
    """What the steps stacked up, in one array again."""
    firsts = [jax.lax.expand_dims(y, (0,)) for y in ys[: len(ys) // min(length, 2)]]
    rests = ys[len(firsts) :]
    if not rests:
        return firsts
    pairs = zip(rests, firsts, strict=True) if backwards else zip(firsts, rests, strict=True)
    return [jax.lax.concatenate(pair, 0) for pair in pairs]


@dataclass(frozen=True)
class PeelInactiveStep(ModulePass):
    """Take the first step out of an inner loop that starts where nothing is differentiated.

    The step's gradient is then differentiated in the hyperparameters alone: of its forward over
    reverse only the tangents of those cotangents remain, often a forward pass; without any, none.
    """

    name = "peel-inactive-step"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        active = find_activity(main_function(op)).values
        PatternRewriteWalker(Peel(active)).rewrite_module(op)
