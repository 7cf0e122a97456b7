"""A loop that runs over positions, and reads what it ran over where that lies.

Cut up, such a loop gets parts of a small array of positions, and nothing else is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from xdsl.ir import SSAValue
from xdsl.pattern_rewriter import PatternRewriter
from xdsl.rewriter import InsertPoint

from mixflow.compiler import jax_compat
from mixflow.compiler.ir.building import build_before
from mixflow.compiler.ir.dialects.attributes import AvalType, EquationAttr
from mixflow.compiler.ir.dialects.jaxpr import ScanOp
from mixflow.compiler.ir.dialects.remarks import move_remarks


def index_inputs(op: ScanOp, active: AbstractSet[SSAValue], rewriter: PatternRewriter) -> ScanOp:
    """Replace a loop by one with the arrays that it runs over as constants, and positions.

    Arrays that are differentiated stay as they are: the cotangent of a constant is a sum over the
    steps, each as large as the whole array.

    Arguments:
        op: the loop. Its body moves into the new one.
        active: the values that a cotangent comes back to.
        rewriter: the pattern's.
    """
    consts, carry, xs = _parts(op, op.operands)
    whole = [x for x in xs if x not in active]
    if not whole:
        return op
    # In place of x[i] for each step, the body is given i and all of x, and takes x[i] itself: when
    # the loop's steps are cut or nested, nothing of x has to be copied.
    (positions,) = build_before(op, partial(_count, op.length), [], rewriter)
    _read_whole(op, [x not in active for x in xs], whole, rewriter)
    rest = [x for x in xs if x in active]
    layout = (len(consts) + len(whole), len(carry), 1 + len(rest))
    params = jax_compat.with_scan_layout(op.params, *layout)
    loop = ScanOp.create(
        operands=[*consts, *whole, *carry, positions, *rest],
        result_types=[result.type for result in op.results],
        properties={"equation": EquationAttr(replace(op.eqn, params=params))},
        regions=[rewriter.move_region_contents_to_new_regions(op.regions[0])],
    )
    move_remarks(op, loop)
    rewriter.insert(loop, InsertPoint.before(op))
    rewriter.replace(op, [], loop.results)
    return loop


def _parts(op: ScanOp, values: Sequence[SSAValue]) -> tuple[Sequence[SSAValue], ...]:
    """Constants, what is carried, and what the loop runs over."""
    start, stop = op.num_consts, op.num_consts + op.num_carry
    return values[:start], values[start:stop], values[stop:]


def _read_whole(
    op: ScanOp,
    is_whole: Sequence[bool],
    whole: Sequence[SSAValue],
    rewriter: PatternRewriter,
) -> None:
    """Let a body take whole arrays after its constants, a position, and read its slices itself."""
    block = op.regions[0].block
    xs = block.args[op.num_consts + op.num_carry :]
    slices = [arg for arg, one in zip(xs, is_whole, strict=True) if one]
    arrays = [
        block.insert_arg(value.type, op.num_consts + place) for place, value in enumerate(whole)
    ]
    place = op.num_consts + len(whole) + op.num_carry
    position = block.insert_arg(AvalType(ShapedArray((), jnp.dtype(jnp.int32))), place)
    start = InsertPoint.at_start(block)
    read = build_before(op, _read, [position, *arrays], rewriter, start)
    for old, new in zip(slices, read, strict=True):
        rewriter.replace_all_uses_with(old, new)
        block.erase_arg(old)


def _count(length: int) -> list[Any]:
    return [jax.lax.iota(jnp.int32, length)]


def _read(position: Any, *arrays: Any) -> list[Any]:
    return [jax.lax.dynamic_index_in_dim(x, position, keepdims=False) for x in arrays]
