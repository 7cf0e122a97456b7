"""The symbolic derivative: `primal[f]`, `vjp[f]` and the pushforward of `vjp[f]`.

For a function f(c, x) with constants c, a point x and cotangents w, three primitives stand in
a jaxpr for what `jax.vjp` would have spelled out:

    primal[f](c, x)             →  y = f(c, x)
    vjp[f](c, x, w)             →  (y, if asked for) and x̄ = (∂f/∂x)ᵀ w
    pushforward[f](c, x, w; ċ, ẋ, ẇ)  →  (ẏ, x̄˙), linear in the tangents

Reverse mode over `vjp[f]` transposes the last one, by one of two rules: `symmetric_rule.py`
(forward over reverse) or `transposed_rule.py` (reverse over forward). Either needs c, x and w, and
nothing from inside f is saved between the two passes.

An equation whose function has the rule `PLAIN` uses neither: it differentiates as the plain
`jax.vjp` that it stands for, to the letter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import or_
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, mlir

from mixflow.compiler.barriers.barrier import waiting_for_each_other
from mixflow.compiler.barriers.waiting import wait_for_less
from mixflow.compiler.derivative.differentiand import Differentiand, Rule
from mixflow.compiler.derivative.orientation import orient_product
from mixflow.compiler.derivative.symmetric_rule import symmetric_pullback
from mixflow.compiler.derivative.transposed_rule import transposed_pullback
from mixflow.compiler.derivative.weak_types import gradient_types
from mixflow.compiler.derivative.zeros import push_forward
from mixflow.compiler.jaxprs.equations import rewrite_equations
from mixflow.compiler.jaxprs.flagged import without_flags
from mixflow.compiler.jaxprs.values import (
    Values,
    as_arrays,
    is_inexact,
    merge,
    partition,
    spec_of,
    spread,
)
from mixflow.compiler.rules.reach import Reach

# --- primal[f] ---------------------------------------------------------------------------------

primal_p = Primitive("mixflow_primal")
primal_p.multiple_results = True


@primal_p.def_impl
def _primal(*operands: Any, function: Differentiand) -> list[Any]:
    consts, point, _ = function.split(operands)
    if not function.custom:
        return function.call(*consts, *point)
    # A custom rule's forward may differ from its function, and forward mode knows no custom_vjp
    # but inside of a vjp: the value is the one that jax.vjp gives.
    return function.value_and_pullback(consts, point)[0]


@primal_p.def_effectful_abstract_eval
def _primal_abstract(*avals: Any, function: Differentiand) -> tuple[list[Any], Any]:
    if function.retyped:
        params = {"function": function}
        return traced_definition(primal_p, avals, params).out_avals, function.jaxpr.effects
    return function.jaxpr.out_avals, function.jaxpr.effects


def _primal_jvp(primals: Values, tangents: Values, *, function: Differentiand) -> Any:
    return _jvp_of(lambda *operands: _primal(*operands, function=function), primals, tangents)


# --- vjp[f] ------------------------------------------------------------------------------------

vjp_p = Primitive("mixflow_vjp")
vjp_p.multiple_results = True


@vjp_p.def_impl
def _vjp(*operands: Any, function: Differentiand, with_value: bool) -> list[Any]:
    consts, point, cotangents = function.split(operands)
    outputs, pullback = function.value_and_pullback(consts, point)
    return [*(outputs if with_value else ()), *pullback(cotangents)]


@vjp_p.def_effectful_abstract_eval
def _vjp_abstract(*avals: Any, function: Differentiand, with_value: bool) -> tuple[list[Any], Any]:
    params: dict[str, Any] = {"function": function, "with_value": with_value}
    if function.retyped:
        return traced_definition(vjp_p, avals, params).out_avals, function.jaxpr.effects
    outputs = function.jaxpr.out_avals if with_value else []
    cotangents = function.split(avals)[2]
    jaxpr, carries = function.jaxpr.jaxpr, function.carries
    point_bar = gradient_types(jaxpr, function.num_consts, carries, cotangents)
    return [*outputs, *point_bar], function.jaxpr.effects


def _vjp_jvp(
    primals: Values, tangents: Values, *, function: Differentiand, with_value: bool
) -> tuple[list[Any], list[Any]]:
    params: dict[str, Any] = {"function": function, "with_value": with_value}
    if function.rule is Rule.PLAIN:
        return _jvp_of(lambda *operands: _vjp(*operands, **params), primals, tangents)
    perturbed = tuple(not isinstance(tangent, ad.Zero) for tangent in tangents)
    if any(perturbed[: function.num_consts]) and function.soundness.rests:
        # Plain JAX has the value from that rule as well: `act(c) * x` where the forward rule of
        # act does not compute what act does, or is no call of act, and is differentiated further.
        results, _ = _jvp_of(lambda *operands: _vjp(*operands, **params), primals, tangents)
    else:
        results = vjp_p.bind(*primals, **params)
    # The pushforward is asked only for what follows some tangent, and given only the tangents that
    # something follows. Real zeros would be pulled back later, through whatever made the operand.
    zeros = [ad.Zero(jax.typeof(result).to_tangent_aval()) for result in results]
    follows = _follows(primals, perturbed, params)
    if not any(follows):
        return results, zeros
    reached_by = reduce(or_, follows)
    perturbed = tuple(bool(reached_by >> position & 1) for position in range(len(perturbed)))
    pushed = pushforward_p.bind(
        *primals, *partition(perturbed, tangents)[0], perturbed=perturbed, **params
    )
    inexact = [is_inexact(jax.typeof(result)) for result in results]
    pushed = merge(inexact, pushed, partition(inexact, zeros)[1])
    return results, [
        tangent if follow else zero
        for follow, tangent, zero in zip(follows, pushed, zeros, strict=True)
    ]


def _follows(primals: Values, perturbed: tuple[bool, ...], params: dict[str, Any]) -> list[int]:
    """For each result of a pullback the operands whose tangents reach it, as bits of a number.

    The gradient of `sum(c * x)` follows c, but not x. A cotangent of zeros for x would ask for
    derivatives that JAX may not have, of what x is computed by, where plain JAX asks for none.
    """
    closed = traced_definition(vjp_p, list(map(jax.typeof, primals)), params)
    bits = [1 << position if moves else 0 for position, moves in enumerate(perturbed)]
    return Reach().program(closed.jaxpr, bits)


def _jvp_of(function: Callable[..., list[Any]], primals: Values, tangents: Values) -> Any:
    """`jax.jvp` of a flat function, with symbolic zeros left out of it."""
    perturbed = [not isinstance(tangent, ad.Zero) for tangent in tangents]
    moving, fixed = partition(perturbed, primals)
    results, pushed, follows = push_forward(
        lambda *moving: function(*merge(perturbed, moving, fixed)),
        moving,
        partition(perturbed, tangents)[0],
    )
    return results, [
        tangent if follow else ad.Zero(jax.typeof(result).to_tangent_aval())
        for result, tangent, follow in zip(results, pushed, follows, strict=True)
    ]


# --- the pushforward of vjp[f], a linear primitive ----------------------------------------------

pushforward_p = Primitive("mixflow_pushforward")
pushforward_p.multiple_results = True


@pushforward_p.def_impl
def pushforward(
    *operands: Any, function: Differentiand, with_value: bool, perturbed: tuple[bool, ...]
) -> list[Any]:
    """The pushforward of `vjp[f]` in plain JAX: operands are c, x, w, then the tangents."""
    primals, tangents = operands[: len(perturbed)], list(operands[len(perturbed) :])
    moving, fixed = partition(perturbed, primals)
    results, pushed = jax.jvp(
        lambda *moving: _vjp(
            *merge(perturbed, moving, fixed), function=function, with_value=with_value
        ),
        moving,
        tangents,
    )
    return [
        tangent
        for result, tangent in zip(results, pushed, strict=True)
        if is_inexact(jax.typeof(result))
    ]


@pushforward_p.def_effectful_abstract_eval
def _pushforward_abstract(
    *avals: Any, function: Differentiand, with_value: bool, perturbed: tuple[bool, ...]
) -> tuple[list[Any], Any]:
    primals = avals[: len(perturbed)]
    results, effects = _vjp_abstract(*primals, function=function, with_value=with_value)
    return [aval.to_tangent_aval() for aval in results if is_inexact(aval)], effects


def _pushforward_jvp(primals: Values, tangents: Values, **params: Any) -> Any:
    """Third order: linear in its own tangents, plain JAX where the point moves as well."""
    num_fixed = len(params["perturbed"])
    if any(not isinstance(tangent, ad.Zero) for tangent in tangents[:num_fixed]):
        return _jvp_of(lambda *operands: pushforward(*operands, **params), primals, tangents)
    moved = [ad.instantiate_zeros(tangent) for tangent in tangents[num_fixed:]]
    return (
        pushforward_p.bind(*primals, **params),
        pushforward_p.bind(*primals[:num_fixed], *moved, **params),
    )


def _pushforward_transpose(
    cotangents: Values,
    *operands: Any,
    function: Differentiand,
    with_value: bool,
    perturbed: tuple[bool, ...],
) -> list[Any]:
    """The pullback of the pullback, by the function's rule."""
    primals, tangents = operands[: len(perturbed)], operands[len(perturbed) :]
    linear = [ad.is_undefined_primal(tangent) for tangent in tangents]
    wanted = [bool(flag) for flag in spread(perturbed, linear)]
    value_bar, point_bar = _split_cotangents(cotangents, function, with_value)
    # f is rerun below. Its second run is not to begin, nor be merged with the first, before the
    # cotangents are there: that is what keeps f's intermediates out of memory in between.
    primals, value_bar, point_bar = waiting_for_each_other((list(primals), value_bar, point_bar))
    pullback = symmetric_pullback if function.rule is Rule.SYMMETRIC else transposed_pullback
    transposed = as_arrays(pullback(function, primals, wanted, value_bar, point_bar))
    return [
        *(None for _ in primals),
        *(result for keep, result in zip(perturbed, transposed, strict=True) if keep),
    ]


def _split_cotangents(
    cotangents: Values, function: Differentiand, with_value: bool
) -> tuple[list[Any], list[Any]]:
    """Cotangents s of every output of f (None where there is none) and v of every x̄."""
    point_bar = list(cotangents[len(cotangents) - function.num_points :])
    if not with_value:
        return [None] * len(function.carries), point_bar
    given = iter(cotangents)
    outputs = [next(given) if is_inexact(aval) else None for aval in function.jaxpr.out_avals]
    return [None if isinstance(s, ad.Zero) else s for s in outputs], point_bar


ad.primitive_jvps[primal_p] = _primal_jvp
ad.primitive_jvps[vjp_p] = _vjp_jvp
ad.primitive_jvps[pushforward_p] = _pushforward_jvp
ad.primitive_transposes[pushforward_p] = _pushforward_transpose

SYMBOLIC = {primal_p: _primal, vjp_p: _vjp, pushforward_p: pushforward}
"""The symbolic primitives, each with the plain JAX that it stands for."""


def traced_definition(
    primitive: Primitive, avals: Sequence[Any], params: dict[str, Any]
) -> ClosedJaxpr:
    """The plain program that a symbolic derivative lowers to, remembered with its function.

    Arguments:
        primitive: one of `SYMBOLIC`.
        avals: of the operands.
        params: the equation's parameters.
    """
    known = params["function"].spelled
    others = tuple((name, value) for name, value in sorted(params.items()) if name != "function")
    key = primitive, others, tuple(avals), jax.sharding.get_abstract_mesh()
    if key not in known:
        closed = jax.make_jaxpr(partial(SYMBOLIC[primitive], **params))(*map(spec_of, avals))
        known[key] = rewrite_equations(without_flags(closed), _for_xla)
    return known[key]


def plain_program(
    primitive: Primitive, avals: Sequence[Any], params: dict[str, Any]
) -> ClosedJaxpr:
    """JAX's own equations for a symbolic derivative: no rule of mixflow's, at any depth.

    Arguments:
        primitive: one of `SYMBOLIC`.
        avals: of the operands.
        params: the equation's parameters.
    """
    function: Differentiand = params["function"]
    key = "plain", primitive, params.get("with_value"), params.get("perturbed"), tuple(avals)
    if key not in function.spelled:
        jaxpr = rewrite_equations(function.jaxpr, _as_jit)
        plain = replace(function, jaxpr=jaxpr, chosen=Rule.PLAIN)
        call = partial(SYMBOLIC[primitive], **{**params, "function": plain})
        function.spelled[key] = jax.make_jaxpr(call)(*map(spec_of, avals))
    return function.spelled[key]


def _as_jit(eqn: Any) -> list[Any]:
    """A symbolic derivative as a jit of JAX's own equations."""
    if eqn.primitive not in SYMBOLIC:
        return [eqn]
    closed = plain_program(eqn.primitive, [atom.aval for atom in eqn.invars], eqn.params)
    traced = jax.make_jaxpr(jax.jit(jaxpr_as_fun(closed)))(*map(spec_of, closed.in_avals))
    (made,) = traced.jaxpr.eqns
    return [made.replace(invars=eqn.invars, outvars=eqn.outvars)]


def _for_xla(eqn: Any) -> list[Any]:
    return [new for one in wait_for_less(eqn) for new in orient_product(one)]


def _lowered(primitive: Primitive, *operands: Any, **params: Any) -> list[Any]:
    closed = traced_definition(primitive, list(map(jax.typeof, operands)), params)
    return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *operands)


for _primitive in SYMBOLIC:
    _rule = mlir.lower_fun(partial(_lowered, _primitive), multiple_results=True)
    mlir.register_lowering(_primitive, _rule)
