"""Reverse mode over the symbolic derivative."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from programs import ETA, FEW, PROGRAMS, THETA, both_gradients, gradient, plain, scalar, symbolic
from support import assert_close, primitives

import mixflow

each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)


@each_program
def test_gradient_in_every_argument(program: Any) -> None:
    expected = jax.jit(jax.value_and_grad(scalar(plain(program)), (0, 1)))(THETA, ETA)
    found = jax.jit(jax.value_and_grad(scalar(symbolic(program)), (0, 1)))(THETA, ETA)
    assert_close(found, expected)


@each_program
@pytest.mark.parametrize("argument", [0, 1])
def test_gradient_in_one_argument(program: Any, argument: int) -> None:
    expected = jax.jit(jax.grad(scalar(plain(program)), argument))(THETA, ETA)
    assert_close(jax.jit(jax.grad(scalar(symbolic(program)), argument))(THETA, ETA), expected)


@pytest.mark.parametrize("program", FEW, ids=lambda f: f.__name__)
def test_jacrev(program: Any) -> None:
    expected = jax.jit(jax.jacrev(plain(program), (0, 1)))(THETA, ETA)
    assert_close(jax.jit(jax.jacrev(symbolic(program), (0, 1)))(THETA, ETA), expected)


@pytest.mark.parametrize("program", FEW[:2], ids=lambda f: f.__name__)
def test_gradient_without_jit(program: Any) -> None:
    expected = jax.grad(scalar(plain(program)), (0, 1))(THETA, ETA)
    assert_close(jax.grad(scalar(symbolic(program)), (0, 1))(THETA, ETA), expected)


def test_linear_transpose_of_the_pushforward() -> None:
    def pushforward(f: Any) -> Any:
        return lambda tangent: jax.jvp(lambda t: f(t, ETA), (THETA,), (tangent,))[1]

    expected = jax.linear_transpose(pushforward(plain(gradient)), THETA)(ETA)
    assert_close(jax.linear_transpose(pushforward(symbolic(gradient)), THETA)(ETA), expected)


@pytest.mark.parametrize("used", [0, 1])
def test_only_one_of_two_gradients_has_a_cotangent(used: int) -> None:
    """The other one's is a symbolic zero."""
    expected = jax.grad(scalar(lambda t, e: plain(both_gradients)(t, e)[used]), (0, 1))(THETA, ETA)
    found = jax.grad(scalar(lambda t, e: symbolic(both_gradients)(t, e)[used]), (0, 1))(THETA, ETA)
    assert_close(found, expected)


def test_constants_that_are_not_reached_are_not_differentiated() -> None:
    """Reverse mode of a while loop would raise."""

    def meta_loss(ad: Any, eta: Any) -> Any:
        steps = jnp.sum(jnp.abs(THETA))

        def loss(theta: Any) -> Any:
            scale = jax.lax.while_loop(lambda s: s < steps, lambda s: s * 2, steps / 8)
            return jnp.sum(jnp.sin(theta * eta)) * scale

        return jnp.sum(ad.grad(loss)(THETA) ** 2)

    expected = jax.jit(jax.grad(lambda eta: meta_loss(jax, eta)))(ETA)
    assert_close(jax.jit(jax.grad(lambda eta: meta_loss(mixflow, eta)))(ETA), expected)


def test_nothing_from_inside_the_loss_is_kept() -> None:
    """What the forward pass hands to the backward pass is the point and the constants."""

    def loss(theta: Any, eta: Any) -> Any:
        for _ in range(5):
            theta = jnp.tanh(jnp.outer(theta, eta) @ theta)
        return jnp.sum(theta)

    def residuals(ad: Any) -> int:
        pullback = jax.eval_shape(lambda e: jax.vjp(lambda e: ad.grad(loss)(THETA, e), e)[1], ETA)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert residuals(mixflow) <= THETA.size + ETA.size + 1
    assert residuals(jax) > 3 * residuals(mixflow)


def test_reverse_mode_binds_one_pushforward_and_no_second_pullback() -> None:
    jaxpr = jax.make_jaxpr(jax.jvp, static_argnums=0)(
        symbolic(gradient), (THETA, ETA), (THETA, ETA)
    )
    names = primitives(jaxpr.jaxpr)
    assert (names["mixflow_vjp"], names["mixflow_pushforward"]) == (1, 1)
