"""Rules that no tangent of the point reaches, and rules whose value is not their function's.

Plain JAX takes the value of a custom function from its rule wherever it differentiates it, and so
has to mixflow: where the function is a factor of the loss alone, in gradients inside of the loss,
and with forward rules that call the function itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from support import assert_close

import mixflow

PASSES = (
    "reverse-over-forward",
    "canonicalize,fuse-value-and-pullback,forward-over-reverse,reverse-over-forward",
)
E, T, X = jnp.array([0.3, 0.4]), jnp.array([0.5, -0.6]), jnp.array([0.1, 0.7])

Function = Callable[..., Any]


def untrue_vjp(factor: float) -> Function:
    """tanh with a forward rule that gives a multiple of it, and an untrue derivative."""
    f = jax.custom_vjp(jnp.tanh)
    f.defvjp(lambda x: (factor * jnp.tanh(x), x), lambda x, g: (g * jnp.exp(-x * x),))
    return f


def untrue_jvp(factor: float) -> Function:
    f = jax.custom_jvp(jnp.tanh)
    f.defjvp(lambda p, t: (factor * jnp.tanh(*p), t[0] * jnp.exp(-(p[0] ** 2))))
    return f


def of_itself() -> Function:
    """A forward rule that calls the function that it belongs to."""
    f = jax.custom_vjp(jnp.tanh)
    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * jnp.exp(-x * x),))
    return f


RULES = {
    "vjp": untrue_vjp(1.0),
    "vjp with other value": untrue_vjp(2.0),
    "vjp of itself": of_itself(),
    "jvp": untrue_jvp(1.0),
    "jvp with other value": untrue_jvp(2.0),
}

PLACES: dict[str, Callable[[Function, Any, Any], Any]] = {
    "factor": lambda act, h, e: act(e) * h,
    "in a branch": lambda act, h, e: lax.cond(
        h[0] > -9, lambda h: act(e) * h, lambda h: h**2 * e, h
    ),
    "checkpointed": lambda act, h, e: jax.checkpoint(lambda h: act(e) * h**2)(h),
    "inner gradient, factor": lambda act, h, e: jax.grad(lambda r: jnp.sum(act(h * e) * r**2))(h),
    "inner gradient, point": lambda act, h, e: jax.grad(lambda r: jnp.sum(act(h * r) * e))(h),
    "mapped inner gradient": lambda act, h, e: jax.vmap(
        lambda r: jax.grad(lambda k: jnp.sum(act(h * e) * k * jnp.sin(k * r)))(r).sum()
    )(h),
}


REFERENCES = {"checkpointed": lambda act, h, e: act(e) * h**2}
"""With `jax_remat3` JAX gives another gradient of an untrue rule in a checkpoint than without."""


def meta_gradient(act: Function, place: Function) -> Function:
    """The gradient through two steps in a scan, so that points depend on the hyperparameters."""

    def loss(t: Any, e: Any, x: Any) -> Any:
        return jnp.sum(jnp.sin(place(act, x * t, e)) ** 2)

    def meta(e: Any, t: Any, x: Any) -> Any:
        def step(t: Any, x: Any) -> tuple[Any, Any]:
            value, gradient = jax.value_and_grad(loss)(t, e, x)
            return t - 0.1 * gradient, value

        t, values = lax.scan(step, t, jnp.stack([x, x + 1]))
        return jnp.sum(values) + jnp.sum(t**2)

    return jax.value_and_grad(meta, argnums=(0, 1))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rule", RULES)
def test_rules_have_the_value_that_plain_jax_gives_them(rule: str, place: str) -> None:
    gradient = meta_gradient(RULES[rule], PLACES[place])
    expected = jax.jit(meta_gradient(RULES[rule], REFERENCES.get(place, PLACES[place])))(E, T, X)
    for passes in PASSES:
        assert_close(mixflow.compile(gradient, passes=passes)(E, T, X), expected)


@pytest.mark.parametrize("passes", ["", "canonicalize", *PASSES, None])
def test_eigh_of_a_matrix_that_is_not_symmetric(passes: str | None) -> None:
    matrix = jnp.array([[0.456, 0.738], [0.712, 0.865]])

    def loss(t: Any, e: Any) -> Any:
        return jnp.mean(jnp.linalg.eigh(t * e, symmetrize_input=False)[0] ** 2)

    def meta(e: Any, t: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(t, e)
        return value + jnp.sum(gradient**2)

    differentiated = jax.value_and_grad(meta)
    expected = jax.jit(differentiated)(0.665, matrix)
    assert_close(mixflow.compile(differentiated, passes=passes)(0.665, matrix), expected)
    first_order = mixflow.compile(jax.value_and_grad(lambda e: loss(matrix, e)), passes=passes)
    assert_close(first_order(0.665), jax.jit(jax.value_and_grad(lambda e: loss(matrix, e)))(0.665))


@pytest.mark.parametrize("passes", [*PASSES, None])
def test_a_branch_in_a_rule_is_mapped_after_it_was_transposed(passes: str | None) -> None:
    act = jax.custom_jvp(jnp.sin)
    act.defjvps(lambda g, _, x: lax.cond(x[0] > 0.1, lambda g: g, lambda g: 2.0 * g, g))

    def meta(e: Any, t: Any) -> Any:
        return jnp.sum(jax.grad(lambda t: jnp.sum(act(t * e) ** 2))(t) ** 2)

    es = jnp.stack([E, -E, 2 * E])
    mapped = jax.vmap(jax.grad(meta), (0, None))
    expected = jax.jit(mapped)(es, T)
    inside = jax.vmap(mixflow.compile(jax.grad(meta), passes=passes), (0, None))
    assert_close(jax.jit(inside)(es, T), expected)
