"""Matrix products and convolutions: in which precision they run and which operands are copied."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixflow.compiler.memory.dataflow import Kind, Value
from mixflow.compiler.memory.scope import Array, Scope

_HALVES = (jnp.bfloat16, jnp.float16)
_HALF_PRODUCTS = jax.__version_info__ >= (0, 11)
"""Whether XLA's CPU library multiplies matrices of 16-bit numbers; else they are converted."""


def product(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    """A matrix product.

    Arguments:
        eqn: a `dot_general`.
        args: its operands.
    """
    (contract, batch), out = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    left, right = (
        _operand(scope, eqn, args[side], batch[side], contract[side], side) for side in (0, 1)
    )
    name = "convert_element_type"
    if left.dtype not in _HALVES or (_HALF_PRODUCTS and not reads_columns(eqn, left)):
        return scope.add(Kind.DOT, (left, right), out, "dot_general", eqn)
    wide = tuple(scope.once(Kind.CHEAP, (x,), _single(x), name, eqn) for x in (left, right))
    result = scope.add(Kind.DOT, wide, _single(out), "dot_general", eqn)
    return scope.add(Kind.CHEAP, (result,), out, name, eqn)


def _single(aval: Any) -> Array:
    return Array(tuple(aval.shape), np.dtype(np.float32))


def _operand(scope: Scope, eqn: Any, arg: Value, batch: Any, contract: Any, side: int) -> Value:
    """An operand of a matrix product, copied if no library takes its dimensions as they are.

    They do take (batch, rows, columns), transposed or not, if rows and columns are one dimension
    each. All else becomes (batch, free, contracted) on the left, (batch, contracted, free) on the
    right.
    """
    aval = eqn.invars[side].aval
    long = [dim for dim, size in enumerate(aval.shape) if size != 1]
    leading = [dim for dim in batch if dim in long]
    free = [dim for dim in long if dim not in batch and dim not in contract]
    contracted = [dim for dim in contract if dim in long]
    is_matrix = len(free) <= 1 and len(contracted) <= 1 and long[: len(leading)] == leading
    wanted = [*leading, *contracted, *free] if side == 1 else [*leading, *free, *contracted]
    if wanted == long or is_matrix:
        return arg
    copied = Array(tuple(aval.shape[dim] for dim in wanted), arg.dtype)
    return scope.once(Kind.MOVE, (arg,), copied, "transpose", eqn)


def reads_columns(eqn: Any, left: Value) -> bool:
    """Whether a matrix product reads its left operand by columns.

    Arguments:
        eqn: a `dot_general`.
        left: the operand, as `product` takes it.
    """
    ((contracted, _), (batch, _)) = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    free = [
        dim
        for dim, size in enumerate(shape)
        if dim not in contracted and dim not in batch and size != 1
    ]
    is_copied = left.name == "transpose"  # then it is copied as the product needs it
    return not is_copied and bool(free) and min(contracted, default=0) < max(free)


def is_swapped_product(eqn: Any, arg: Value) -> bool:
    """Whether a transposition of a product is the product of its operands the other way round."""
    if arg.kind is not Kind.DOT:
        return False
    ((contracted, _), (batch, _)) = arg.eqn.params["dimension_numbers"]
    first, rest = len(batch), len(contracted) + len(batch)
    rows, columns = (len(var.aval.shape) - rest for var in arg.eqn.invars[:2])
    second, stop = first + rows, first + rows + columns
    swapped = (*range(first), *range(second, stop), *range(first, second))
    return tuple(eqn.params["permutation"]) == swapped


def convolution(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    """A convolution; operands and result that are not channels-last are transposed.

    Arguments:
        eqn: a `conv_general_dilated`.
        args: its operands.
    """
    dims, out = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    last = len(dims.lhs_spec) - 1
    image = (0, last, *range(1, last))
    kernel = (last, last - 1, *range(last - 1))
    is_grouped = eqn.params["batch_group_count"] > 1
    as_it_is = (
        tuple(dims.lhs_spec) == image and not is_grouped,
        tuple(dims.rhs_spec) == kernel and not is_grouped,
    )
    reads = tuple(
        arg if keep else scope.add(Kind.MOVE, (arg,), arg, "transpose", eqn)
        for arg, keep in zip(args, as_it_is, strict=True)
    )
    result = scope.add(Kind.CALL, reads, out, "conv_general_dilated", eqn)
    if tuple(dims.out_spec) == image:
        return result
    return scope.add(Kind.MOVE, (result,), out, "transpose", eqn)
