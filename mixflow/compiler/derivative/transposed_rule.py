"""The transposed rule: the pullback of a pullback is the pullback of the pushforward.

With J = ∂f/∂x as forward mode applies it, ⟨v, Jᵀ w⟩ = ⟨J v, w⟩ for every v and w. So the cotangents
of c, x and w, for cotangents s of y and v of x̄, are those that come back through

    (c, x) ↦ (f(c, x), J(c, x) v)      for the cotangents (s, w),      and J v for w.

No derivative has to be symmetric, nor any rule true: J is what JAX's reverse mode transposes. It
needs a forward mode of f. A `custom_vjp` has none, but where its backward rule is linear in the
cotangent, the transposition of that rule is one. `docs/derivative-rule.md` proves it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import ad

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.differentiand import Differentiand
from mixflow.compiler.derivative.fusible_groups import with_fusible_groups
from mixflow.compiler.derivative.zeros import symbolic_zeros
from mixflow.compiler.jaxprs.equations import as_custom_jvp, rewrite_equations, run_rewritten
from mixflow.compiler.jaxprs.flagged import without_flags
from mixflow.compiler.jaxprs.subprograms import equations_in
from mixflow.compiler.jaxprs.values import (
    Values,
    is_inexact,
    merge,
    one_equation,
    partition,
    spread,
)
from mixflow.compiler.recording import paused
from mixflow.compiler.rules.linearity import why_not_linear

UNROLLED = 64
"""The most equations that an unrolled loop in a custom rule may have: about as many as a rule has
without a loop. XLA compiles more of them too slowly for what is gained."""


def transposed_pullback(
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
    inputs = [*consts, *point]
    want_inputs, want_w = wanted[: len(inputs)], wanted[len(inputs) :]
    if function.custom:
        # JAX runs a custom rule where any part of x reaches it. So x moves as a whole here, too.
        point_bar = list(map(ad.instantiate_zeros, point_bar))
    moves = [not isinstance(v, ad.Zero) for v in point_bar]
    tangents = partition(moves, point_bar)[0]
    reached = [s is not None for s in value_bar]

    def value_and_push(*active: Any) -> tuple[list[Any], list[Any]]:
        given = merge(want_inputs, active, partition(want_inputs, inputs)[1])
        outputs, pushed = _push(function, given, moves, tangents)
        return partition(reached, outputs)[0], partition(function.carries, pushed)[0]

    # In one reverse pass, s comes back through f's outputs and w through J v. And J v itself, which
    # the forward pass has computed on the way, is w's cotangent.
    active = partition(want_inputs, inputs)[0]
    (_, pushed), pullback = jax_compat.VJP_OF_JAX(value_and_push, *active)
    inputs_bar = pullback((partition(reached, value_bar)[0], cotangents))
    return [
        *spread(want_inputs, inputs_bar),
        *(bar if keep else None for bar, keep in zip(pushed, want_w, strict=True)),
    ]


def _push(
    function: Differentiand, inputs: list[Any], moves: list[bool], tangents: list[Any]
) -> tuple[list[Any], list[Any]]:
    """f's outputs, and their tangents where the marked leaves of x move."""
    consts, point = inputs[: function.num_consts], inputs[function.num_consts :]
    moving, resting = partition(moves, point)
    # Reverse mode is about to save what each tangent needs. Grouped, it saves what the group needs.
    call = jaxpr_as_fun(with_fusible_groups(_forward_program(function)))
    return jax.jvp(lambda *moving: call(*consts, *merge(moves, moving, resting)), moving, tangents)


def forward_function(function: Differentiand) -> Any:
    """f as a Python function of the flat c and x, with a forward mode.

    Raises:
        ValueError, TypeError: when it is pushed forward through a rule that is not linear.
    """
    return jaxpr_as_fun(_forward_program(function))


def _forward_program(function: Differentiand) -> ClosedJaxpr:
    if not function.custom:
        return function.jaxpr
    return rewrite_equations(function.jaxpr, _with_forward_mode)


def _all_with_forward_mode(closed: ClosedJaxpr) -> ClosedJaxpr:
    """A forward rule may call the function itself: that is to have a forward mode as well.

    It may also call others, whose rules nobody has looked at yet.
    """
    return rewrite_equations(rewrite_equations(without_flags(closed), _unroll), _if_linear)


def _if_linear(eqn: Any) -> list[Any]:
    with paused():
        is_linear = eqn.primitive.name != "custom_vjp_call" or why_not_linear(eqn) is None
    return _with_forward_mode(eqn) if is_linear else [eqn]


def _unroll(eqn: Any) -> list[Any]:
    """A short loop without its loop.

    Its reverse pass stacks a value of each step. XLA makes the zeros that a stack starts from
    before everything else, for the rules of all layers at once, whatever is rerun later.
    """
    if eqn.primitive.name != "scan":
        return [eqn]
    length, body = eqn.params["length"], eqn.params["jaxpr"].jaxpr
    is_known = isinstance(length, int)  # jax.export has symbolic ones
    if not is_known or length * sum(1 for _ in equations_in(body)) > UNROLLED:
        return [eqn]
    return [eqn.replace(params={**eqn.params, "unroll": max(1, length)})]


def _with_forward_mode(eqn: Any) -> list[Any]:
    """A `custom_vjp` whose rule is linear as a `custom_jvp`: its transposed backward rule."""
    inner = eqn.params.get("function")
    if isinstance(inner, Differentiand) and inner.custom:
        # A gradient inside of f. A custom_vjp in its function may depend on no part of its point:
        # jax.grad(lambda e: act(h) * e**2)(e) pushes act forward where h moves.
        jaxpr = rewrite_equations(inner.jaxpr, _with_forward_mode)
        return [eqn.replace(params={**eqn.params, "function": replace(inner, jaxpr=jaxpr)})]
    if eqn.primitive.name != "custom_vjp_call":
        return [eqn]
    push = functools.partial(_push_through, eqn)
    made = as_custom_jvp(one_equation(eqn), push, eqn.invars, eqn.outvars)
    return [made.replace(ctx=eqn.ctx, source_info=eqn.source_info)]


def _push_through(eqn: Any, primals: Values, tangents: Values) -> tuple[list[Any], list[Any]]:
    """The outputs of a `custom_vjp`, and their tangents by its transposed backward rule.

    JAX's own pullback of the equation is its backward rule, with all that JAX does around it.
    That pullback is linear, so its reverse mode at any cotangent, here at 0, is its transposition.
    """
    moves = [not isinstance(tangent, SymbolicZero) for tangent in tangents]
    carries = [is_inexact(var.aval) for var in eqn.outvars]
    moving, resting = partition(moves, primals)
    call = one_equation(eqn)

    def push(moving: Values, resting: Values, moved: Values) -> tuple[Any, Any, Any]:
        def carried(*moving: Any) -> tuple[list[Any], list[Any]]:
            return partition(carries, call(*merge(moves, moving, resting)))

        outputs, pullback, rest = jax_compat.VJP_OF_JAX(carried, *moving, has_aux=True)
        zeros = list(map(jnp.zeros_like, outputs))
        _, transposed = jax_compat.VJP_OF_JAX(pullback, zeros)
        return outputs, rest, transposed(tuple(moved))[0]

    given = moving, resting, partition(moves, tangents)[0]
    outputs, rest, pushed = run_rewritten(push, _all_with_forward_mode, *given)
    return merge(carries, outputs, rest), merge(carries, pushed, symbolic_zeros(rest))
