"""One loop as several: loops inside loops, and what remains in loops after them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from xdsl.ir import Block, Region, SSAValue
from xdsl.pattern_rewriter import PatternRewriter
from xdsl.rewriter import InsertPoint

from mixflow.compiler import jax_compat
from mixflow.compiler.analysis.nesting import Lengths, Nest
from mixflow.compiler.ir.building import build_before
from mixflow.compiler.ir.dialects.attributes import AvalType, EquationAttr, aval_of
from mixflow.compiler.ir.dialects.jaxpr import ScanOp, YieldOp
from mixflow.compiler.ir.dialects.remarks import move_remarks


@dataclass(frozen=True)
class Part:
    """Successive steps of a loop that are nested by themselves.

    Arguments:
        lengths: of the loops, the outermost first.
        start: the place of the steps in what the loop runs over.
    """

    lengths: Lengths
    start: int

    @property
    def stop(self) -> int:
        """The place after the last step."""
        return self.start + math.prod(self.lengths)


def nest_scan(op: ScanOp, nest: Nest, rewriter: PatternRewriter) -> list[ScanOp]:
    """Replace a loop by nested ones that take the same steps in the same order.

    Arguments:
        op: the loop. Its body moves into the first part; the others get copies.
        nest: as many steps.
        rewriter: the pattern's.

    Returns:
        The new loops, each before those inside it. The first has the old one's remarks.
    """
    parts = parts_in_order(nest, backwards=op.params["reverse"])
    stop = op.num_consts + op.num_carry
    consts, carry = op.operands[: op.num_consts], op.operands[op.num_consts : stop]
    # What the loop runs over is cut into the parts and reshaped to the levels: 6 steps as 2 × 3
    # read x[6, …] as x[2, 3, …], each level a dimension.
    xs = build_before(op, partial(_cut, parts), op.operands[stop:], rewriter)
    width = len(op.operands) - stop
    made: list[ScanOp] = []
    ys: list[SSAValue] = []
    for position, (part, step) in enumerate(
        zip(parts, _steps(op, len(parts), rewriter), strict=True)
    ):
        slices = xs[position * width : (position + 1) * width]
        loop = _nested(op, part.lengths, [*consts, *carry, *slices], step)
        rewriter.insert(loop, InsertPoint.before(op))
        made.extend(_levels(loop, len(part.lengths)))
        carry, ys = loop.results[: op.num_carry], [*ys, *loop.results[op.num_carry :]]
    move_remarks(op, made[0])
    rewriter.replace(op, [], [*carry, *build_before(op, partial(_join, parts), ys, rewriter)])
    return made


def parts_in_order(nest: Nest, *, backwards: bool) -> list[Part]:
    """The parts in the order in which they run, which may be from the end backwards."""
    done, parts = 0, list[Part]()
    for lengths in nest.parts:
        steps = math.prod(lengths)
        parts.append(Part(lengths, nest.steps - done - steps if backwards else done))
        done += steps
    return parts


def _steps(op: ScanOp, count: int, rewriter: PatternRewriter) -> list[Region]:
    """The loop's body and as many copies as are asked for."""
    body = op.regions[0]
    copies = [body.clone() for _ in range(count - 1)]
    return [rewriter.move_region_contents_to_new_regions(body), *copies]


def _nested(op: ScanOp, lengths: Lengths, operands: Sequence[SSAValue], step: Region) -> ScanOp:
    """Loops of some lengths around a step, as operands and parameters of `op` are laid out."""
    body = step if len(lengths) == 1 else _level(op, lengths[1:], step)
    last = body.block.last_op
    assert last is not None
    carry, ys = last.operands[: op.num_carry], last.operands[op.num_carry :]
    # `unroll` is the user's wish for single steps, so the innermost loop gets it.
    unroll = min(op.params["unroll"], lengths[0]) if len(lengths) == 1 else 1
    params = {**op.params, "length": lengths[0], "unroll": unroll}
    return ScanOp.create(
        operands=operands,
        result_types=[
            *(value.type for value in carry),
            *(stacked_type(y, lengths[:1]) for y in ys),
        ],
        properties={"equation": EquationAttr(replace(op.eqn, params=params))},
        regions=[body],
    )


def _level(op: ScanOp, lengths: Lengths, step: Region) -> Region:
    """A body that is a loop itself."""
    args, stop = step.block.args, op.num_consts + op.num_carry
    types = [*(arg.type for arg in args[:stop]), *(stacked_type(x, lengths) for x in args[stop:])]
    block = Block(arg_types=types)
    inner = _nested(op, lengths, block.args, step)
    block.add_ops([inner, YieldOp.create(operands=inner.results)])
    return Region(block)


def _levels(loop: ScanOp, depth: int) -> list[ScanOp]:
    loops = [loop]
    while len(loops) < depth:
        inner = loops[-1].regions[0].block.first_op
        assert isinstance(inner, ScanOp)
        loops.append(inner)
    return loops


def stacked_type(value: SSAValue, lengths: Lengths) -> AvalType:
    """The type of a value stacked up by loops of some lengths, the outermost first."""
    aval = aval_of(value)
    for length in reversed(lengths):
        aval = jax_compat.stacked_aval(length, aval)
    return AvalType(aval)


def _cut(parts: Sequence[Part], *xs: Any) -> list[Any]:
    """For each part in turn, its share of what the loop runs over, a dimension for each level."""
    return [
        jax.lax.reshape(
            jax.lax.slice_in_dim(x, part.start, part.stop), (*part.lengths, *x.shape[1:])
        )
        for part in parts
        for x in xs
    ]


def _join(parts: Sequence[Part], *ys: Any) -> list[Any]:
    """What the parts' loops stacked up, in one array again."""
    count = len(ys) // len(parts)
    positions = sorted(range(len(parts)), key=lambda position: parts[position].start)
    return [
        jax.lax.concatenate(
            [
                jax.lax.collapse(ys[position * count + y], 0, len(parts[position].lengths))
                for position in positions
            ],
            0,
        )
        for y in range(count)
    ]
