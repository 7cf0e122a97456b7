"""Batching rules of the symbolic derivative: `vjp[f]` over mapped points is `vjp[vmap f]`.

The named axis goes along, so that a `psum` or `pmean` inside the loss means what it meant. A
pullback (or pushforward) that is mapped over its linear operands alone is spelled out as plain
JAX instead: all lanes share one forward pass, as `jax.jacrev` and `jax.hessian` have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.differentiand import Differentiand, Rule
from mixflow.compiler.derivative.vjp_primitive import (
    SYMBOLIC,
    primal_p,
    pushforward,
    pushforward_p,
    vjp_p,
)
from mixflow.compiler.jaxprs.values import Values, is_inexact, merge, partition, spec_of
from mixflow.compiler.recording import current_recording, paused
from mixflow.compiler.rules.mapped import shares_results
from mixflow.compiler.rules.replay import Replay, where_rules_run

Dims = Sequence[int | None]


def _batched(
    function: Differentiand, mapped: tuple[bool, ...], axis: Any, operands: Values
) -> Differentiand | None:
    """`vmap f` over the consts marked in `mapped` and over all of x, traced once per pattern.

    None where JAX could not run its custom rules, or not transpose what they compute, or where
    lanes would share a rule's cotangent: JAX maps them while it runs them then, or after.
    """
    name = jax_compat.public_axis_name(axis)
    key = (mapped, name, axis.size, axis.spmd_name)
    if key not in function.batched:
        in_axes = (*(0 if flag else None for flag in mapped), *(0,) * function.num_points)
        call = jax.vmap(
            function.call,
            in_axes=in_axes,
            axis_name=name,
            axis_size=axis.size,
            spmd_axis_name=axis.spmd_name,
        )
        jaxpr = jax.make_jaxpr(call)(*operands)
        batched = replace(function, jaxpr=jaxpr)
        runs = (
            not shares_results(function.jaxpr, (*mapped, *(True,) * function.num_points))
            and where_rules_run(jaxpr.jaxpr) is not Replay.AT_ONCE
            and _has_derivatives(batched)
        )
        function.batched[key] = batched if runs else None
    return function.batched[key]


def _has_derivatives(function: Differentiand) -> bool:
    """Whether JAX differentiates a mapped function, and again by a rule of mixflow's.

    A custom rule with a `cond` in it has none: JAX writes a `stop_gradient` for it where its
    predicate is mapped, and cannot transpose that.
    """
    if not function.custom:
        return True
    inputs = list(map(spec_of, function.jaxpr.in_avals))
    consts, point, _ = function.split(inputs)
    try:
        with paused():
            jax.make_jaxpr(function.gradient)(consts, point)
            if not function.soundness.obstacles:
                jax.make_jaxpr(partial(_second_derivative, function))(*inputs)
    except Exception:  # a user's rule may raise any, and so do faults of JAX's own in mapping it
        return False
    return True


def _second_derivative(function: Differentiand, *inputs: Any) -> Any:
    """The pullback of f's value and gradient, by the transposed rule, for any cotangents."""
    function = replace(function, chosen=Rule.TRANSPOSED)
    moves = list(map(is_inexact, function.jaxpr.in_avals))
    moving, fixed = partition(moves, inputs)

    def value_and_gradient(*moving: Any) -> Any:
        primals = merge(moves, moving, fixed)
        values = primal_p.bind(*primals, function=function)
        bars = partition(function.carries, values)[0]
        gradient = vjp_p.bind(*primals, *bars, function=function, with_value=False)
        return [one for one in (*values, *gradient) if is_inexact(one.aval)]

    found, pullback = jax_compat.VJP_OF_JAX(value_and_gradient, *moving)
    return pullback(found)


def _to_front(axis: Any, value: Any, dim: int | None) -> Any:
    """The value with the mapped axis first, repeated along it where it was not mapped."""
    if dim is None:
        return batching.broadcast(value, axis.size, 0, mesh_axis=axis.explicit_mesh_axis)
    return jnp.moveaxis(value, dim, 0)


def _uses_axis(function: Differentiand, axis: Any) -> bool:
    return jax_compat.public_axis_name(axis) in jax_compat.axis_names(function.jaxpr.effects)


def _is_mapped(dims: Dims) -> bool:
    return any(dim is not None for dim in dims)


def _bind_mapped(
    primitive: Primitive,
    axis: Any,
    operands: Values,
    dims: Dims,
    stays: Sequence[bool],
    *,
    function: Differentiand,
    **params: Any,
) -> tuple[list[Any], list[int]]:
    """Bind the primitive on `vmap f`: what stays is unmapped, all the rest mapped along axis 0."""
    moved = [
        value if stay else _to_front(axis, value, dim)
        for value, dim, stay in zip(operands, dims, stays, strict=True)
    ]
    mapped = tuple(not stay for stay in stays[: function.num_consts])
    inputs = moved[: function.num_consts + function.num_points]
    batched = _batched(function, mapped, axis, inputs)
    if batched is None:
        # JAX's own equations, mapped one by one, as if nothing had been captured.
        plain = partial(SYMBOLIC[primitive], function=function, **params)
        results = _vmapped(plain, axis, dims)(*operands)
    else:
        results = primitive.bind(*moved, function=batched, **params)
    return results, [0] * len(results)


def _unmapped(results: list[Any]) -> tuple[list[Any], list[None]]:
    return results, [None] * len(results)


def _primal_rule(
    axis: Any, operands: Values, dims: Dims, *, function: Differentiand
) -> tuple[list[Any], Sequence[int | None]]:
    if not _is_mapped(dims) and not _uses_axis(function, axis):
        return _unmapped(primal_p.bind(*operands, function=function))
    stays = [position < function.num_consts and dim is None for position, dim in enumerate(dims)]
    return _bind_mapped(primal_p, axis, operands, dims, stays, function=function)


def _vjp_rule(
    axis: Any, operands: Values, dims: Dims, *, function: Differentiand, with_value: bool
) -> tuple[list[Any], Sequence[int | None]]:
    params: dict[str, Any] = {"function": function, "with_value": with_value}
    if not _is_mapped(dims) and not _uses_axis(function, axis):
        return _unmapped(vjp_p.bind(*operands, **params))
    num_inputs = function.num_consts + function.num_points
    if not _is_mapped(dims[:num_inputs]) and not _uses_axis(function, axis):
        return _vjp_of_mapped_cotangents(axis, operands, dims, **params)
    stays = [position < function.num_consts and dim is None for position, dim in enumerate(dims)]
    return _bind_mapped(vjp_p, axis, operands, dims, stays, **params)


def _vjp_of_mapped_cotangents(
    axis: Any, operands: Values, dims: Dims, *, function: Differentiand, with_value: bool
) -> tuple[list[Any], Sequence[int | None]]:
    """One forward pass for all lanes: an ordinary vjp, its pullback mapped; symbolic for one."""
    consts, point, cotangents = function.split(operands)
    # One lane shares nothing with others, so nothing is lost if it stays symbolic.
    if axis.size == 1:
        pairs = zip(cotangents, dims[-len(cotangents) :], strict=True)
        rows = [w if dim is None else jnp.squeeze(w, dim) for w, dim in pairs]
        params = {"function": function, "with_value": with_value}
        return _unmapped(vjp_p.bind(*consts, *point, *rows, **params))
    _note_shared_forward_pass()
    outputs, pullback = function.value_and_pullback(consts, point)
    outputs = outputs if with_value else []
    point_bar = _vmapped(lambda *w: list(pullback(w)), axis, dims[-len(cotangents) :])(*cotangents)
    return [*outputs, *point_bar], [*(None for _ in outputs), *(0 for _ in point_bar)]


def _pushforward_rule(
    axis: Any,
    operands: Values,
    dims: Dims,
    *,
    function: Differentiand,
    with_value: bool,
    perturbed: tuple[bool, ...],
) -> tuple[list[Any], Sequence[int | None]]:
    params: dict[str, Any] = {
        "function": function, "with_value": with_value, "perturbed": perturbed
    }  # fmt: skip
    num_primals = len(perturbed)
    if not _is_mapped(dims) and not _uses_axis(function, axis):
        return _unmapped(pushforward_p.bind(*operands, **params))
    if not _is_mapped(dims[:num_primals]) and not _uses_axis(function, axis):
        return _pushforward_of_mapped_tangents(axis, operands, dims, **params)
    # A constant is mapped where it or its tangent is, and then both are.
    positions = [position for position, moving in enumerate(perturbed) if moving]
    tangent_dims = dict(zip(positions, dims[num_primals:], strict=True))
    fixed = [
        position < function.num_consts
        and dims[position] is None
        and tangent_dims.get(position) is None
        for position in range(num_primals)
    ]
    stays = [*fixed, *(fixed[position] for position in positions)]
    return _bind_mapped(pushforward_p, axis, operands, dims, stays, **params)


def _pushforward_of_mapped_tangents(
    axis: Any, operands: Values, dims: Dims, *, perturbed: tuple[bool, ...], **params: Any
) -> tuple[list[Any], list[int]]:
    _note_shared_forward_pass()
    primals, tangents = operands[: len(perturbed)], operands[len(perturbed) :]

    def push(*tangents: Any) -> list[Any]:
        return pushforward(*primals, *tangents, perturbed=perturbed, **params)

    results = _vmapped(push, axis, dims[len(perturbed) :])(*tangents)
    return results, [0] * len(results)


def _note_shared_forward_pass() -> None:
    recording = current_recording()
    if recording is not None:
        recording.decline(
            "a derivative that is mapped over its cotangents or tangents alone stays JAX's own "
            "and shares one forward pass"
        )


def _vmapped(call: Callable[..., Any], axis: Any, dims: Dims) -> Callable[..., Any]:
    return jax.vmap(call, in_axes=tuple(dims), axis_size=axis.size, spmd_axis_name=axis.spmd_name)


def register() -> None:
    """Give the symbolic primitives their batching rules."""
    batching.fancy_primitive_batchers[primal_p] = _primal_rule
    batching.fancy_primitive_batchers[vjp_p] = _vjp_rule
    batching.fancy_primitive_batchers[pushforward_p] = _pushforward_rule
