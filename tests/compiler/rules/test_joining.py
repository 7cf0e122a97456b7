"""Rules that are not linear: JAX pulls the cotangents of value and pullback back as one sum."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_close, captures, primitives, reasons

import mixflow
from mixflow.passes import DEFAULT_PIPELINE

M = jnp.array([[0.3, 1.1], [0.2, -0.5]])
E, T = jnp.array(0.7), jnp.array([0.3, -0.8])


@jax.custom_vjp
def squared(x):
    """The identity, with a rule that makes large cotangents larger."""
    return x


# The forward rule calls the function, so that the rule is used at the second order, too.
squared.defvjp(lambda x: (squared(x), None), lambda _, g: (g * jnp.abs(g),))


def inner(t, e):
    return squared(jnp.sin(M @ t * e)) * t


def at_rest(t, e):
    return jnp.sin(M @ t) * squared(e)


def pair(function, e, t):
    return jax.vjp(lambda t: function(t, e), t)


def cotangent_of_the_value(function, e, t):
    y, pull = pair(function, e, t)
    return jnp.sum(pull(jnp.cos(y))[0] ** 2) + jnp.sum(y**3)


def cotangent_beside_it(function, e, t):
    y, pull = pair(function, e, t)
    return jnp.sum(pull(jnp.cos(t * e))[0] ** 2) + jnp.sum(y**3)


def two_pullbacks(function, e, t):
    _, pull = pair(function, e, t)
    return jnp.sum(pull(jnp.cos(t))[0] ** 2) + jnp.sum(pull(jnp.ones(2))[0] ** 3)


def pullback_in_a_loop(function, e, t):
    y, pull = pair(function, e, t)

    def step(total, w):
        return total + jnp.sum(pull(w)[0] ** 2), None

    return jax.lax.scan(step, 0.0, jnp.stack([y, jnp.sin(y)]))[0]


def mapped_pullback(function, e, t):
    y, pull = pair(function, e, t)
    pulled = jax.vmap(lambda w: pull(w)[0])(jnp.stack([y, jnp.sin(y), y * 2]))
    return jnp.sum(pulled**2) + jnp.sum(y**2)


def aux(function, e, t):
    def loss(t):
        y = function(t, e)
        return jnp.sum(y**2), y

    gradient, y = jax.grad(loss, has_aux=True)(t)
    return jnp.sum(gradient**2) + jnp.sum(y)


def aux_mapped(function, e, t):
    return jnp.sum(jax.vmap(lambda t: aux(function, e, t))(jnp.stack([t, 2.0 * t])))


FUNCTIONS = [inner, at_rest]
WAYS = [
    cotangent_of_the_value,
    cotangent_beside_it,
    two_pullbacks,
    pullback_in_a_loop,
    mapped_pullback,
    aux,
    aux_mapped,
]
"""Every way in which a value and its pullback are asked for."""


@pytest.mark.parametrize("passes", [None, "", DEFAULT_PIPELINE], ids=["planned", "none", "default"])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_the_sum_is_pulled_back(way: Any, function: Any, passes: str | None) -> None:
    meta = functools.partial(way, function)
    options = {} if passes is None else {"passes": passes}
    expected = jax.jit(jax.value_and_grad(meta))(E, T)
    assert_close(jax.jit(jax.value_and_grad(mixflow.compile(meta, **options)))(E, T), expected)
    assert_close(mixflow.compile(jax.value_and_grad(meta), **options)(E, T), expected)


def test_without_compile() -> None:
    def explicit(e: Any, t: Any) -> Any:
        value, pull = mixflow.vjp(lambda t: inner(t, e), t)
        return jnp.sum(pull(jnp.cos(value))[0] ** 2) + jnp.sum(value**3)

    def plain(e: Any, t: Any) -> Any:
        value, pull = jax.vjp(lambda t: inner(t, e), t)
        return jnp.sum(pull(jnp.cos(value))[0] ** 2) + jnp.sum(value**3)

    assert_close(jax.jit(jax.grad(explicit))(E, T), jax.jit(jax.grad(plain))(E, T))


def test_what_is_torn_is_left_to_jax_and_the_rest_is_not() -> None:
    def meta(e: Any, t: Any) -> Any:
        y, pull = jax.vjp(lambda t: inner(t, e), t)
        other = jax.grad(lambda t: jnp.sum(jnp.sin(M @ t * e) ** 2))(t)
        return jnp.sum(pull(jnp.cos(y))[0] ** 2) + jnp.sum(other * y)

    captured = captures(meta, E, T)
    assert captured.num_captured == 1
    assert "a rule in it is not linear" in reasons(captured)


def test_a_linear_rule_keeps_its_equations() -> None:
    flipped = jax.custom_vjp(lambda x: x)
    flipped.defvjp(lambda x: (x, None), lambda _, g: (-g,))

    def meta(e: Any, t: Any) -> Any:
        y, pull = jax.vjp(lambda t: flipped(jnp.sin(t * e)), t)
        return jnp.sum(pull(jnp.cos(y))[0] ** 2) + jnp.sum(y)

    captured = captures(meta, E, T)
    assert primitives(captured.jaxpr.jaxpr)["mixflow_primal"] == 1
    assert reasons(captured) == ""


def test_a_jit_that_is_called_twice_is_not_torn() -> None:
    @jax.jit
    def step(t: Any, e: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda t: jnp.sum(inner(t, e) ** 2))(t)
        return t - 0.1 * gradient * value

    def meta(e: Any, t: Any) -> Any:
        return jnp.sum(step(step(t, e), e) ** 2)

    assert reasons(captures(meta, E, T)) == ""
    expected = jax.jit(jax.grad(meta))(E, T)
    assert_close(mixflow.compile(jax.grad(meta))(E, T), expected)


def test_a_compiled_function_inside_another() -> None:
    @mixflow.compile
    def gradient(t: Any, e: Any) -> Any:
        return jax.value_and_grad(lambda t: jnp.sum(inner(t, e) ** 2))(t)[1]

    def meta(e: Any, t: Any) -> Any:
        return jnp.sum(gradient(t, e) * gradient(2.0 * t, e))

    def plain(e: Any, t: Any) -> Any:
        return jnp.sum(gradient.fun(t, e) * gradient.fun(2.0 * t, e))

    assert_close(mixflow.compile(jax.grad(meta))(E, T), jax.jit(jax.grad(plain))(E, T))


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_no_segment_of_a_gradient_runs_such_a_rule_twice(scanned: bool) -> None:
    """Each run would be a call of its own for what differentiates the gradient."""
    weights = jnp.stack([M, 2.0 * M, M.T])

    def layer(h: Any, w: Any) -> Any:
        return jnp.sin(squared(jnp.tanh(h @ w)) * h), None

    def loss(t: Any, e: Any) -> Any:
        h = jnp.ones((16, 2)) * t
        if scanned:
            return jnp.sum(jax.lax.scan(layer, h * e, weights)[0] ** 2)
        for w in weights:
            h = layer(h * e, w)[0]
        return jnp.sum(h**2)

    def meta(e: Any, t: Any) -> Any:
        return jnp.sum(jax.grad(loss)(t, e) ** 2)

    f = jax.jit(jax.grad(meta))
    for passes in ("segment-loss", "fuse-value-and-pullback,segment-loss{slack=0 rerun=2.0}"):
        assert_close(mixflow.compile(jax.grad(meta), passes=passes)(E, T), f(E, T))
