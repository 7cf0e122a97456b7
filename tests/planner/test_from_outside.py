"""A gradient inside the inner loss: differentiated outside it comes to the same as inside."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_close

import mixflow
from mixflow.planner.plan import Plan

KEYS = jax.random.split(jax.random.key(0), 5)
LAYERS = [0.3 * jax.random.normal(key, (8, 8)) for key in KEYS[:3]]
X = jax.random.normal(KEYS[4], (96, 8))
ETA = jnp.zeros(96)


def net(layers: Any, h: Any) -> Any:
    for layer in layers:
        h = jnp.tanh(h @ layer)
    return h


def fit(layers: Any, eta: Any) -> Any:
    return jnp.mean(jnp.exp(eta) * jnp.sum((net(layers, X) - 0.1) ** 2, -1))


def physics_informed(layers: Any, eta: Any) -> Any:
    """The residual of a differential equation."""

    def u(t: Any) -> Any:
        return jnp.sum(net(layers, jnp.full(8, t)))

    t = X[:, 0]
    residual = jax.vmap(jax.grad(jax.grad(u)))(t) + jax.vmap(jax.grad(u))(t)
    return jnp.mean(jnp.exp(eta) * (residual - t) ** 2)


def force_matching(layers: Any, eta: Any) -> Any:
    """Forces are the gradient of an energy in the inputs."""
    forces = jax.vmap(jax.grad(lambda x: jnp.sum(net(layers, x))))(X)
    return jnp.mean(jnp.exp(eta) * jnp.sum((forces + X) ** 2, -1))


def gradient_penalty(layers: Any, eta: Any) -> Any:
    gradient = jax.grad(fit)(layers, eta)
    return fit(layers, eta) + 0.1 * sum(jnp.sum(g**2) for g in gradient)


def sharpness_aware(layers: Any, eta: Any) -> Any:
    gradient = jax.grad(fit)(layers, eta)
    return fit([a + 0.1 * g for a, g in zip(layers, gradient, strict=True)], eta)


def meta(loss: Any) -> Any:
    def meta_loss(eta: Any, layers: Any) -> Any:
        def step(layers: Any, _: Any) -> Any:
            gradient = jax.grad(loss)(layers, eta)
            return [a - 0.01 * g for a, g in zip(layers, gradient, strict=True)], None

        layers, _ = jax.lax.scan(step, layers, length=4)
        return jnp.mean((net(layers, X) - 0.1) ** 2)

    return meta_loss


def run(jitted: Any) -> tuple[Any, int]:
    compiled = jitted.lower(ETA, LAYERS).compile()
    return compiled(ETA, LAYERS), compiled.memory_analysis().temp_size_in_bytes


LOSSES = [physics_informed, force_matching, gradient_penalty, sharpness_aware]
REWRITTEN = Plan(symmetric=True, transposed=True, levels=1, gradients=True)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_outside_it_comes_to_the_same(loss: Any) -> None:
    f = jax.value_and_grad(meta(loss))
    expected, plain = run(jax.jit(f))
    inside, whole = run(mixflow.compile(f))
    outside, apart = from_outside(meta(loss))
    assert_close(inside, expected)
    assert_close(outside, expected)
    assert max(apart, whole) < 0.7 * plain


def from_outside(meta_loss: Any, **options: Any) -> tuple[Any, int]:
    """The value and gradient of the compiled loss itself."""
    outer = jax.value_and_grad(mixflow.compile(meta_loss, **options))
    return run(jax.jit(outer, compiler_options=mixflow.compiler_options() or None))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_one_plan_takes_the_same_memory_outside(loss: Any) -> None:
    """The chosen plans may differ: inside, the first step is known not to reach the weights."""
    passes = REWRITTEN.passes
    _, inside = run(mixflow.compile(jax.value_and_grad(meta(loss)), passes=passes))
    _, outside = from_outside(meta(loss), passes=passes)
    assert outside < 1.3 * inside
