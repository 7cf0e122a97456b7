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
from jax.extend.core import ClosedJaxpr, Jaxpr, Var

_OPENED = frozenset(
    {"scan", "while", "cond", "jit", "pjit", "closed_call", "checkpoint", "remat", "remat2"}
)
"""Equations whose programs are looked into. Custom rules keep theirs."""


def orient_products(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same program, products over the leading dimensions of both operands narrower first.

    Arguments:
        closed: any program; what it computes stays the same to rounding.
    """
    return ClosedJaxpr(_Orientation().jaxpr(closed.jaxpr), closed.consts)


class _Orientation:
    """One program; a jaxpr that stands in it several times stays one."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}

    def jaxpr(self, jaxpr: Jaxpr) -> Jaxpr:
        """A jaxpr, and those inside it."""
        if id(jaxpr) not in self._done:
            eqns = [new for eqn in jaxpr.eqns for new in self._equation(eqn)]
            # The key is an identity: what it belongs to must not be freed meanwhile.
            self._done[id(jaxpr)] = jaxpr, jaxpr.replace(eqns=eqns)
        return self._done[id(jaxpr)][1]

    def _equation(self, eqn: Any) -> list[Any]:
        name = eqn.primitive.name
        if name == "dot_general":
            return _swapped(eqn) if _reads_wider_columns(eqn) else [eqn]
        if name in _OPENED:
            return [eqn.replace(params={key: self._param(v) for key, v in eqn.params.items()})]
        return [eqn]

    def _param(self, value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return self._closed(value)
        if isinstance(value, Jaxpr):
            return self.jaxpr(value)
        if isinstance(value, tuple) and value and isinstance(value[0], ClosedJaxpr):
            return tuple(map(self._closed, value))
        return value

    def _closed(self, closed: ClosedJaxpr) -> ClosedJaxpr:
        if id(closed) not in self._done:
            self._done[id(closed)] = closed, ClosedJaxpr(self.jaxpr(closed.jaxpr), closed.consts)
        return self._done[id(closed)][1]


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
    (contracted, batch), precision = eqn.params["dimension_numbers"], eqn.params["precision"]
    left, right = eqn.invars
    out = eqn.outvars[0].aval
    split = len(left.aval.shape) - len(contracted[0])
    shape = (*out.shape[split:], *out.shape[:split])
    swapped = Var(ShapedArray(shape, out.dtype, weak_type=out.weak_type))
    params = {
        **eqn.params,
        "dimension_numbers": (contracted[::-1], batch[::-1]),
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,
    }
    places = range(len(shape))
    order = (*places[len(shape) - split :], *places[: len(shape) - split])
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
