"""Custom rules that JAX cannot map as equations, or not differentiate then: it maps them itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from checking import assert_close
from jax import lax

import mixflow

ETA = jnp.array([[0.406, 0.155, 0.143]])
ROWS = jnp.array([0.393, 0.371, -0.099])[:, None]

REWRITTEN = "canonicalize,cse,fuse-value-and-pullback,canonicalize,reverse-over-forward"


@jax.custom_vjp
def chooses(x: Any) -> Any:
    return x


def _backward(x: Any, g: Any) -> Any:
    return (lax.cond(x[0, 0] > 0.1, lambda g: g, lambda g: 2.0 * g, g),)


chooses.defvjp(lambda x: (chooses(x), x), _backward)


@jax.custom_vjp
def normalises(x: Any) -> Any:
    return jnp.clip(x, 0.5)


normalises.defvjp(lambda x: (normalises(x), x), lambda x, g: (g / jnp.linalg.norm(g),))


def by_vmap(loss: Any) -> Any:
    """A meta-loss whose inner gradient is mapped, so that a rule's predicate is."""

    def meta(eta: Any) -> Any:
        gradients = jax.vmap(lambda row: jax.grad(loss)(0.4 * row[0], eta, row))(ROWS)
        return loss(0.4 - jnp.mean(gradients), eta, ROWS[0])

    return jax.value_and_grad(meta)


def beside_the_value(theta: Any, eta: Any, row: Any) -> Any:
    h = theta * eta
    gradient, aux = jax.grad(lambda h: (jnp.sum(h**3), chooses(h)), has_aux=True)(h)
    return jnp.sum(gradient * aux * row)


@pytest.mark.parametrize("passes", [None, REWRITTEN])
def test_a_predicate_of_a_rule_that_is_mapped(passes: str | None):
    f = by_vmap(beside_the_value)
    assert_close(mixflow.compile(f, passes=passes)(ETA), jax.jit(f)(ETA))


@pytest.mark.parametrize("passes", [None, REWRITTEN])
def test_a_rule_that_jax_cannot_map_twice(passes: str | None):
    """JAX 0.12 takes the wrong axis of a rule in two loops that is mapped twice: IndexError."""

    def loss(theta: Any, eta: Any, x: Any) -> Any:
        def steps(h: Any, w: Any) -> Any:
            def squares(h: Any) -> Any:
                return jnp.sum(normalises(h) ** 2)

            h = jnp.tanh(h @ w)
            return jax.grad(lambda h: jnp.vdot(jax.grad(squares)(h), theta))(h), None

        def layers(h: Any, _: Any) -> Any:
            return lax.scan(steps, h, jnp.stack([theta]))[0], None

        h = x * eta
        return x, lax.scan(layers, h, length=1)[0]

    def meta(eta: Any, theta: Any, rows: Any) -> Any:
        _, _, aux = jax.vjp(lambda t: loss(t, eta, rows), theta, has_aux=True)
        return aux.sum() + 2.0

    f = jax.vmap(jax.grad(meta), in_axes=(0, None, None))
    args = jnp.array([0.45]), jnp.array([[0.639, 0.539], [0.552, 0.638]]), ETA[0, :2] + jnp.eye(2)
    assert_close(mixflow.compile(f, passes=passes)(*args), jax.jit(f)(*args))
