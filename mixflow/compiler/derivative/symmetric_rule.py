"""The symmetric rule: the pullback of a pullback is the pushforward of the pullback.

With φ(c, x) = ⟨f(c, x), w⟩, the transpose of the pushforward of `vjp[f]` asks for

    x:  ∇²_xx φ v + (∂f/∂x)ᵀ s      c:  ∇²_cx φ v + (∂f/∂c)ᵀ s      w:  (∂f/∂x) v

for cotangents s of y and v of x̄, and since second derivatives commute all three come out of
one forward-mode pass: push (ẋ = v, ẇ = s) through (x, w) ↦ (f, ∇_{c,x} ⟨f, w⟩). Nothing from
inside f is saved between the two passes. Kemaev et al., "Scalable Meta-Learning via Mixed-Mode
Differentiation" (ICML 2025, arXiv 2505.00793); `docs/derivative-rule.md` proves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.differentiand import Differentiand
from mixflow.compiler.jaxprs.values import Values, merge, partition, spread


def symmetric_pullback(
    function: Differentiand,
    primals: Values,
    wanted: Sequence[bool],
    value_bar: Values,
    point_bar: Values,
) -> list[Any]:
    """Cotangents of (c, x, w) where wanted, None elsewhere.

    Arguments:
        primals: c, x and w, flat.
        wanted: for each of them, whether its cotangent is asked for.
        value_bar: s, a cotangent or None for every output of f.
        point_bar: v, a cotangent or a symbolic zero for every leaf of x.
    """
    consts, point, cotangents = function.split(primals)
    want_inputs, want_w = wanted[: len(consts) + len(point)], wanted[len(consts) + len(point) :]
    # φ pairs f with w. An output that carries no w joins it with w = 0 when the outer
    # differentiation reaches it: ẇ = s is what brings its first derivative in.
    paired = [carry or s is not None for carry, s in zip(function.carries, value_bar, strict=True)]
    weights = _paired(paired, spread(function.carries, cotangents), function)
    weights_dot = partition(paired, value_bar)[0]
    weighs = [s is not None for s in weights_dot]
    moves = [not isinstance(v, ad.Zero) for v in point_bar]
    # A custom_vjp has no forward mode but inside of a vjp: what moves is differentiated too.
    forced = [False] * len(consts) + [move and function.custom for move in moves]
    # ∇φ is taken in these leaves alone, and these alone are saved for the reverse pass. The others
    # are constants of the whole derivative.
    is_active = [want or force for want, force in zip(want_inputs, forced, strict=True)]
    has_tangent = [False] * sum(is_active)

    def value_and_gradient(moving: list[Any], changing: list[Any]) -> Any:
        inputs = [*consts, *merge(moves, moving, partition(moves, point)[1])]
        active, fixed = partition(is_active, inputs)

        def restricted(*active: Any) -> list[Any]:
            return partition(paired, function.call(*merge(is_active, active, fixed)))[0]

        outputs, pullback = jax_compat.VJP_OF_JAX(restricted, *active)
        gradient = pullback(merge(weighs, changing, partition(weighs, weights)[1]))
        return outputs, list(map(partial(_noted, has_tangent), range(len(active)), gradient))

    # One forward-mode pass gives all three cotangents. A leaf with v = 0 does not move, so what is
    # computed from it alone has no tangent, and is neither pushed nor stored.
    _, (outputs_dot, gradient_dot) = jax.jvp(
        value_and_gradient,
        (partition(moves, point)[0], partition(weighs, weights)[0]),
        (partition(moves, point_bar)[0], partition(weighs, weights_dot)[0]),
    )
    # (∂f/∂x) v is the tangent of f's outputs. Of those that were paired for s alone nobody asks.
    w_bar = partition(
        [carry for carry, keep in zip(function.carries, paired, strict=True) if keep], outputs_dot
    )[0]
    # What `_noted` saw no tangent of gets no cotangent, rather than one of zeros.
    inputs_bar = spread(is_active, spread(has_tangent, partition(has_tangent, gradient_dot)[0]))
    return [
        *(bar if keep else None for bar, keep in zip(inputs_bar, want_inputs, strict=True)),
        *(bar if keep else None for bar, keep in zip(w_bar, want_w, strict=True)),
    ]


def _noted(has_tangent: list[bool], position: int, value: Any) -> Any:
    """The value; under `jax.jvp` it is noted whether it has a tangent at all.

    `jax.jvp` returns zeros where there is none. A cotangent of zeros is pulled back further, and
    where that meets an infinite derivative it is no number; no cotangent is not.
    """
    same = jax.custom_jvp(lambda x: x)

    def rule(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        has_tangent[position] = not isinstance(tangents[0], SymbolicZero)
        return primals[0], tangents[0]

    same.defjvp(rule, symbolic_zeros=True)
    return same(value)


def _paired(paired: Sequence[bool], given: Values, function: Differentiand) -> list[Any]:
    """What is given for each paired output of f, zeros of its type where that is None."""
    return [
        ad.zeros_like_aval(aval.to_ct_aval()) if value is None else value
        for value, aval in partition(
            paired, list(zip(given, function.jaxpr.out_avals, strict=True))
        )[0]
    ]
