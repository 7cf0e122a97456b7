"""Gradients of gradients of gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from programs import (
    ETA,
    FEW,
    TANGENT,
    THETA,
    gradient,
    nested,
    plain,
    scalar,
    symbolic,
    value_with_aux,
)
from support import assert_close

import mixflow


@pytest.mark.parametrize("program", [gradient, value_with_aux], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "third",
    [
        pytest.param(lambda f: jax.jacfwd(jax.grad(f, 1), 1), id="forward over reverse"),
        pytest.param(lambda f: jax.jacrev(jax.grad(f, 1), 1), id="reverse over reverse"),
        pytest.param(lambda f: jax.jacrev(jax.jacfwd(f, 1), 1), id="reverse over forward"),
        pytest.param(lambda f: jax.jacfwd(jax.jacfwd(f, 1), 1), id="forward over forward"),
        pytest.param(lambda f: jax.jacrev(jax.grad(f, 1), 0), id="mixed arguments"),
    ],
)
def test_third_order(program: Any, third: Any) -> None:
    expected = jax.jit(third(scalar(plain(program))))(THETA, ETA)
    assert_close(jax.jit(third(scalar(symbolic(program))))(THETA, ETA), expected)


def test_fourth_order() -> None:
    def directional(f: Any) -> Any:
        return jax.jit(reverse(forward(reverse(f))))(ETA)

    def reverse(f: Any) -> Any:
        return lambda eta: jnp.sum(jax.grad(f)(eta) * TANGENT)

    def forward(f: Any) -> Any:
        return lambda eta: jax.jvp(f, (eta,), (eta,))[1]

    expected = directional(lambda e: scalar(plain(gradient))(THETA, e))
    assert_close(directional(lambda e: scalar(symbolic(gradient))(THETA, e)), expected)


def test_symbolic_gradients_nested_three_deep() -> None:
    def meta_loss(ad: Any, eta: Any) -> Any:
        def first(theta: Any, phi: Any) -> Any:
            return jnp.sum(ad.grad(lambda t: jnp.sum(jnp.sin(t * phi) * t**2))(theta) ** 2)

        def second(phi: Any) -> Any:
            return jnp.sum(ad.grad(first, argnums=1)(THETA, phi * eta) ** 2)

        return jnp.sum(ad.grad(second)(eta) ** 2)

    expected = jax.jit(jax.grad(lambda eta: meta_loss(jax, eta)))(ETA)
    assert_close(jax.jit(jax.grad(lambda eta: meta_loss(mixflow, eta)))(ETA), expected)


@pytest.mark.parametrize("program", [*FEW, nested], ids=lambda f: f.__name__)
def test_mixflow_over_mixflow(program: Any) -> None:
    """The outer gradient is symbolic too."""
    expected = jax.jit(jax.value_and_grad(scalar(plain(program)), (0, 1)))(THETA, ETA)
    found = jax.jit(mixflow.value_and_grad(scalar(symbolic(program)), (0, 1)))(THETA, ETA)
    assert_close(found, expected)


def rule_with_a_branch() -> Any:
    """Once it is mapped, mixflow cannot prove that it is linear."""
    act = jax.custom_vjp(jnp.sin)

    def backward(x: Any, g: Any) -> tuple[Any]:
        return (jax.lax.cond(x[0] > 0.0, lambda g: 2.0 * g, lambda g: g, g) * jnp.cos(x),)

    act.defvjp(lambda x: (jnp.sin(x), x), backward)
    return act


@pytest.mark.parametrize("passes", ["", "forward-over-reverse,reverse-over-forward"])
def test_what_is_at_rest_stays_at_rest(passes: str) -> None:
    """A loop of unknown length has no reverse mode. Here none is asked for: x does not move."""
    act = rule_with_a_branch()

    def loss(t: Any, x: Any) -> Any:
        def inner(row: Any) -> Any:
            scale = jax.lax.while_loop(lambda s: s[0] < 2.0, lambda s: 1.5 * s, jnp.exp(x))
            return jnp.sum(act(row * t * scale))

        return jnp.sum(jax.vmap(jax.grad(inner))(jnp.stack([t, t])) ** 2)

    def third(t: Any, x: Any) -> Any:
        return jax.grad(lambda t: jnp.sum(jax.grad(loss)(t, x)))(t)

    expected = jax.jit(third)(THETA, ETA)
    assert_close(mixflow.compile(third, passes=passes)(THETA, ETA), expected)
