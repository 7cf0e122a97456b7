"""Which operand of a matrix product comes first.

The pullback of `x @ w` in w sums over the rows of x and of the cotangent. JAX puts the cotangent
first and transposes the product. A library that multiplies row by row then has to transpose the
first operand, with whatever is fused into it. The narrower one is the cheaper to transpose.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Var


def orient_product(eqn: Any) -> list[Any]:
    """A product over the leading dimensions of both operands, narrower first; others as they are.

    Arguments:
        eqn: any equation; what it computes stays the same to rounding.
    """
    is_product = eqn.primitive.name == "dot_general"
    return _swapped(eqn) if is_product and _reads_wider_columns(eqn) else [eqn]


def _reads_wider_columns(eqn: Any) -> bool:
    """Whether both operands are summed over their leading dimensions, and the first is wider."""
    (contracted, batch), (out,) = eqn.params["dimension_numbers"], eqn.outvars
    leading = tuple(range(len(contracted[0])))
    if any(batch) or not leading or any(tuple(dims) != leading for dims in contracted):
        return False
    left, right = (atom.aval.shape[len(leading) :] for atom in eqn.invars)
    if not all(isinstance(dim, int) for dim in (*left, *right)):
        return False  # jax.export leaves sizes open
    # On an explicit mesh the transposed product would need a sharding of its own.
    return math.prod(left) > math.prod(right) > 1 and out.aval.sharding.mesh.empty


def _swapped(eqn: Any) -> list[Any]:
    """The product with its operands the other way round, and its transposition."""
    (contracted, _), precision = eqn.params["dimension_numbers"], eqn.params["precision"]
    left, right = eqn.invars
    out = eqn.outvars[0].aval
    split = len(left.aval.shape) - len(contracted[0])
    shape = (*out.shape[split:], *out.shape[:split])
    swapped = Var(ShapedArray(shape, out.dtype, weak_type=out.weak_type))
    # Both operands are summed over the same dimensions, so these stay.
    params = {
        **eqn.params,
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,
    }
    positions = range(len(shape))
    order = (*positions[len(shape) - split :], *positions[: len(shape) - split])
    (template,) = jax.make_jaxpr(lambda x: jax.lax.transpose(x, order))(
        jax.ShapeDtypeStruct(shape, out.dtype)
    ).jaxpr.eqns
    return [
        eqn.replace(invars=[right, left], outvars=[swapped], params=params),
        eqn.replace(
            primitive=template.primitive,
            invars=[swapped],
            outvars=eqn.outvars,
            params=template.params,
        ),
    ]
