"""Terms of the outer variable alone, taken out of the gradient's function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jax.extend.core import jaxpr_as_fun
from xdsl.pattern_rewriter import PatternRewriter
from xdsl.rewriter import InsertPoint

from mixflow.compiler.ir.building import build_before
from mixflow.compiler.ir.dialects.attributes import FunctionAttr
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.dialects.remarks import move_remarks
from mixflow.compiler.ir.emitter import emit_region, main_function
from mixflow.compiler.ir.importer import import_jaxpr


def take_out(op: VjpOp, active: Sequence[bool], rewriter: PatternRewriter) -> VjpOp | None:
    """Compute before a gradient what the symmetric rule must not differentiate twice.

    Arguments:
        op: the gradient.
        active: for each input of the function, whether the outer differentiation reaches it.

    Returns:
        The gradient in its place; None where the symmetric rule is not allowed even so.
    """
    function, start = op.differentiand, op.point_start
    split = function.soundness.without_singular(emit_region(op.body, function.jaxpr), active)
    if split is None:
        return None
    values = build_before(op, jaxpr_as_fun(split.outside), op.operands[: op.point_stop], rewriter)
    body = main_function(import_jaxpr(split.inside, differentiated=False)).body
    function = replace(
        function,
        jaxpr=split.inside,
        num_consts=start + split.num_taken,
        soundness=function.soundness.of_split(split),
    )
    made = VjpOp.create(
        operands=[*op.operands[:start], *values, *op.operands[start:]],
        result_types=op.result_types,
        properties={**op.properties, "function": FunctionAttr(function)},
        regions=[body.clone()],
    )
    move_remarks(op, made)
    rewriter.insert(made, InsertPoint.before(op))
    rewriter.replace(op, [], made.results)
    return made
