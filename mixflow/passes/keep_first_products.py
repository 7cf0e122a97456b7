"""A loss's first products of parameters that lie on several devices are kept for its second run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jax.extend.core import primitives
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Block, BlockArgument, SSAValue
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)
from xdsl.rewriter import InsertPoint

from mixflow.compiler.ir.building import build_before
from mixflow.compiler.ir.dialects.attributes import AvalType, FunctionAttr, aval_of
from mixflow.compiler.ir.dialects.jaxpr import LeafOp
from mixflow.compiler.ir.dialects.mixflow import NameOp, VjpOp
from mixflow.compiler.ir.dialects.remarks import has_remark, move_remarks, rewrote
from mixflow.compiler.ir.emitter import emit_region
from mixflow.compiler.jaxprs.values import spec_of
from mixflow.compiler.primitives import row_by_name
from mixflow.passes.save_inner_gradients import LABEL, levels_around

KEPT = "the first product of parameters on several devices is kept: they are not fetched again"


@dataclass(frozen=True)
class FirstProduct:
    """A product that a loss begins with: linear in a leaf of its point, and of constants beside.

    Arguments:
        op: the product.
        layout: what gives the leaf and the constant the layout that it takes, in order.
        leaf: the leaf of the point.
        const: the other factor, one of the function's constants.
    """

    op: LeafOp
    layout: tuple[LeafOp, ...]
    leaf: BlockArgument
    const: BlockArgument

    def __call__(self, leaf: Any, const: Any) -> Any:
        """The product, in JAX."""
        values: dict[SSAValue, Any] = {self.leaf: leaf, self.const: const}
        for op in (*self.layout, self.op):
            operands = [values[operand] for operand in op.operands]
            values[op.results[0]] = op.eqn.primitive.bind(*operands, **op.params)
        return values[self.op.results[0]]

    def pulled_back(self, leaf_bar: Any, bar: Any, const: Any) -> Any:
        """The cotangent of the leaf, that of the product pulled back and added."""
        spec = spec_of(aval_of(self.leaf))
        (more,) = jax.linear_transpose(partial(self, const=const), spec)(bar)
        return jax.lax.add(leaf_bar, more)


def first_products(op: VjpOp) -> Iterator[FirstProduct]:
    """The first products of a rewritten gradient that devices exchange something for."""
    if op.rule is None:
        return
    for inner in op.body.block.ops:
        if isinstance(inner, LeafOp) and inner.eqn.primitive is primitives.dot_general_p:
            product = _first_product(inner, op)
            if product is not None and is_exchanged(inner):
                yield product


def _first_product(product: LeafOp, op: VjpOp) -> FirstProduct | None:
    (one, ones), (other, others) = map(_behind_layouts, product.operands)
    if one is None or other is None:
        return None
    leaf, const = (one, other) if one.index > other.index else (other, one)
    if not const.index < op.point_start <= leaf.index:
        return None
    return FirstProduct(product, (*ones, *others), leaf, const)


def _behind_layouts(value: SSAValue) -> tuple[BlockArgument | None, list[LeafOp]]:
    """The argument that a value is another layout of, and the operations in between, in order."""
    if isinstance(value, BlockArgument):
        return value, []
    owner = value.owner
    if not isinstance(owner, LeafOp) or not row_by_name(owner.eqn).layout:
        return None, []
    if len(owner.operands) != 1:  # sizes that jax.export has left open are operands, too
        return None, []
    argument, before = _behind_layouts(owner.operands[0])
    return argument, [*before, owner]


def is_exchanged(product: LeafOp) -> bool:
    """Whether devices have to exchange an operand of a product, or parts of the result.

    Known where types say how arrays are sharded: on explicit meshes.
    """
    (contracted, batch), result = product.params["dimension_numbers"], product.results[0]
    specs = [tuple(aval_of(operand).sharding.spec) for operand in product.operands]
    if any(spec[dim] for spec, dims in zip(specs, contracted, strict=True) for dim in dims):
        return True
    free = [
        part
        for spec, *taken in zip(specs, contracted, batch, strict=True)
        for dim, part in enumerate(spec)
        if not any(dim in dims for dims in taken)
    ]
    in_place = (*(specs[0][dim] for dim in batch[0]), *free)
    return in_place != tuple(aval_of(result).sharding.spec)


class KeepFirst(RewritePattern):
    """Put first products before the gradient, whose function is given them as points."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: VjpOp, rewriter: PatternRewriter) -> None:
        products = list(first_products(op))
        if not products or has_remark(op, KeepFirstProducts.name):
            return
        kept = [_before(op, product, rewriter) for product in products]
        for product in products:
            _give(product.op.results[0], op.body.block)
        split = _with_points(op, kept, rewriter)
        rewriter.insert(split, InsertPoint.before(op))
        results: list[SSAValue] = list(split.results[: len(op.results)])
        first_leaf = len(results) - op.differentiand.num_points - op.point_start
        for product, bar in zip(products, split.results[len(results) :], strict=True):
            at = first_leaf + product.leaf.index
            operands = [results[at], bar, op.operands[product.const.index]]
            (results[at],) = build_before(op, product.pulled_back, operands, rewriter)
        for product in products:
            _erase_unread([*product.layout, product.op], rewriter)
        rewrote(split, KeepFirstProducts.name, KEPT)
        for level in levels_around(op.parent_op()):
            level.saved = StringAttr(LABEL)
        rewriter.replace(op, [], results)


def _before(op: VjpOp, product: FirstProduct, rewriter: PatternRewriter) -> SSAValue:
    """The product before its gradient, named to be saved."""
    operands = [op.operands[argument.index] for argument in (product.leaf, product.const)]
    (value,) = build_before(op, product, operands, rewriter)
    named = NameOp(value, LABEL)
    rewriter.insert(named, InsertPoint.before(op))
    return named.output


def _give(value: SSAValue, block: Block) -> None:
    """A new argument of a block in place of a value that was computed in it."""
    value.replace_all_uses_with(block.insert_arg(value.type, len(block.args)))


def _with_points(op: VjpOp, more: list[SSAValue], rewriter: PatternRewriter) -> VjpOp:
    """The same gradient, its body moved, of a function that has been given more of a point."""
    inputs, cotangents = op.operands[: op.point_stop], op.operands[op.point_stop :]
    body = rewriter.move_region_contents_to_new_regions(op.body)
    function = replace(op.differentiand, jaxpr=emit_region(body, op.differentiand.jaxpr))
    bars = [AvalType(aval_of(value).to_ct_aval()) for value in more]
    split = VjpOp.create(
        operands=[*inputs, *more, *cotangents],
        result_types=[*op.result_types, *bars],
        properties={**op.properties, "function": FunctionAttr(function)},
        regions=[body],
    )
    move_remarks(op, split)
    return split


def _erase_unread(ops: list[LeafOp], rewriter: PatternRewriter) -> None:
    """Erase what nobody reads any more, of operations in order."""
    for op in reversed(ops):
        if not any(value.first_use for value in op.results):
            rewriter.erase(op)


@dataclass(frozen=True)
class KeepFirstProducts(ModulePass):
    """A loss's first products of parameters that lie on several devices are not computed again.

    Forward over reverse runs a loss again, and fetches all of its parameters for that; plain JAX
    has stored what the first ones were multiplied with, and does not read them again. For each
    step this keeps a product, and saves the fetching of what it is a product of.
    """

    name = "keep-first-products"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        PatternRewriteWalker(KeepFirst(), apply_recursively=False).rewrite_module(op)
