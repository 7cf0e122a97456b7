"""Symbolic derivatives in a function that somebody transposes.

`jax.linear_transpose`, `custom_linear_solve`, `gmres` and their like transpose a function that is
linear in its argument. A captured gradient in it may be linear in a cotangent, as in

    lambda u: jax.vjp(jax.grad(loss), theta)[1](u)[0]

or, as in `lambda u: jax.grad(lambda t: jnp.vdot(jax.grad(loss)(t), u))(theta)`, in a constant.
Either way JAX's own equations are transposed: a mixed-mode program has barriers in it, behind
which what is linear and what is not can no longer be told apart.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.core
from jax.extend.core import Primitive
from jax.interpreters import ad

from mixflow.compiler.derivative.vjp_primitive import plain_program, primal_p, pushforward_p, vjp_p
from mixflow.compiler.jaxprs.values import Values, merge, partition

_transpose_by_rule = ad.primitive_transposes[pushforward_p]


def _transpose_plainly(
    primitive: Primitive, cotangents: Values, *operands: Any, **params: Any
) -> list[Any]:
    linear = [ad.is_undefined_primal(operand) for operand in operands]
    unknown, known = partition(linear, operands)
    avals = [one.aval if ad.is_undefined_primal(one) else jax.typeof(one) for one in operands]
    closed = plain_program(primitive, avals, params)

    def call(*unknown: Any) -> list[Any]:
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *merge(linear, unknown, known))

    specs = [jax.ShapeDtypeStruct(one.aval.shape, one.aval.dtype) for one in unknown]
    given = list(map(ad.instantiate_zeros, cotangents))
    return merge(linear, jax.linear_transpose(call, *specs)(given), [None] * len(known))


def _transpose_pushforward(cotangents: Values, *operands: Any, **params: Any) -> list[Any]:
    """By the function's rule in the tangents, plainly in what they are tangents at."""
    primals = operands[: len(params["perturbed"])]
    if any(map(ad.is_undefined_primal, primals)):
        return _transpose_plainly(pushforward_p, cotangents, *operands, **params)
    return _transpose_by_rule(cotangents, *operands, **params)


def register() -> None:
    """Give the symbolic primitives their transposition where they stand in a linear function."""
    for primitive in (primal_p, vjp_p):
        ad.primitive_transposes[primitive] = partial(_transpose_plainly, primitive)
    ad.primitive_transposes[pushforward_p] = _transpose_pushforward
