"""New operations for the IR, written as small JAX functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
from xdsl.ir import Operation, SSAValue
from xdsl.pattern_rewriter import PatternRewriter
from xdsl.rewriter import InsertPoint, Rewriter

from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.ir.dialects.attributes import EquationAttr, aval_of
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.ir.importer import import_jaxpr
from mixflow.compiler.jaxprs.values import spec_of


def build_before(
    op: jx.EquationOp,
    function: Callable[..., Any],
    operands: Sequence[SSAValue],
    rewriter: PatternRewriter | None = None,
    at: InsertPoint | None = None,
) -> list[SSAValue]:
    """Put the operations of a JAX function before an operation, and give its results.

    They take the source line and the context (mesh, compute type, …) of `op`.

    Arguments:
        op: what they are to stand before.
        function: called once, with tracers of the operands' types. It may use no arrays but
            those: a region has no place for constants.
        operands: values that are in sight of `op`.
        rewriter: that of a pattern, which is to hear of the new operations.
        at: where they are to stand, if not before `op`; inside of it, say.

    Returns:
        The results of `function`, flat.
    """
    closed = jax.make_jaxpr(function)(*(spec_of(aval_of(value)) for value in operands))
    body = main_function(import_jaxpr(closed, differentiated=False)).body.block
    place_of = dict[SSAValue, SSAValue](zip(body.args, operands, strict=True))
    for new in body.walk():
        _take_context(new, op)
    last = body.last_op
    assert last is not None
    results = [place_of.get(value, value) for value in last.operands]
    last.detach()
    last.erase()
    inline_block = Rewriter.inline_block if rewriter is None else rewriter.inline_block
    inline_block(body, at or InsertPoint.before(op), operands)
    return results


def _take_context(new: Operation, op: jx.EquationOp) -> None:
    assert not isinstance(new, jx.ConstantOp), "a function that builds operations has constants"
    if isinstance(new, jx.EquationOp):
        info = replace(new.eqn, source_info=op.eqn.source_info, ctx=op.eqn.ctx)
        new.equation = EquationAttr(info)


def inline_body(op: jx.JitOp | jx.CheckpointOp, rewriter: PatternRewriter) -> None:
    """Put an operation's body in its place."""
    block = op.regions[0].block
    yielded = block.last_op
    assert yielded is not None
    results = list(yielded.operands)
    rewriter.erase(yielded)
    operands: dict[SSAValue, SSAValue] = dict(zip(block.args, op.operands, strict=True))
    rewriter.inline_block(block, InsertPoint.before(op), op.operands)
    rewriter.replace(op, [], [operands.get(value, value) for value in results])
