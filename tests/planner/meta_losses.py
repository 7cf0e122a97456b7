"""Meta-losses whose plans differ: deep losses, long loops, and one where nothing pays."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def deep(theta, x):
    """Layers in a straight line: what passes between them is small, what they keep is not."""
    for inward, outward in theta:
        x = x + jnp.sin(jnp.tanh(x @ inward) ** 2) @ outward
    return x


def deep_loss(theta, eta, x):
    return jnp.mean(jax.nn.sigmoid(eta) * jnp.sum((deep(theta, x) - 1.0) ** 2, 1))


def momentum_meta_loss(eta, theta, xs, around=lambda step: step):
    """The loss after steps with momentum, whose rate is learned too; `around` wraps the step."""

    @around
    def step(carry, x):
        theta, velocity = carry
        gradient = jax.grad(deep_loss)(theta, eta["weights"], x)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        return (jax.tree.map(lambda t, v: t - eta["rate"] * v, theta, velocity), velocity), None

    carry = theta, jax.tree.map(jnp.zeros_like, theta)
    (theta, _), _ = jax.lax.scan(step, carry, xs[:-1])
    return deep_loss(theta, jnp.zeros_like(eta["weights"]), xs[-1])


def checkpointed_meta_loss(eta, theta, xs):
    """The same with the user's own checkpoint around each step."""
    return momentum_meta_loss(eta, theta, xs, jax.checkpoint)


def descent_meta_loss(eta, theta, x):
    """The loss after steps without momentum: nothing reads their gradients going back."""

    def step(theta, _):
        gradient = jax.grad(deep_loss)(theta, eta, x)
        return jax.tree.map(lambda t, g: t - 0.1 * g, theta, gradient), None

    return deep_loss(jax.lax.scan(step, theta, length=6)[0], jnp.zeros_like(eta), x)


def momentum_args(layers=2, batch=6, width=4, wide=8, steps=3):
    keys = jax.random.split(jax.random.key(0), 2 * layers + 1)
    shapes = [(width, wide), (wide, width)] * layers
    flat = [jax.random.normal(key, shape) / 4 for key, shape in zip(keys[1:], shapes, strict=True)]
    xs = jax.random.normal(keys[0], (steps + 1, batch, width))
    eta = {"weights": jnp.linspace(-1.0, 1.0, batch), "rate": jnp.array(0.05)}
    return eta, list(zip(flat[::2], flat[1::2], strict=True)), xs


DEEP = {"layers": 8, "batch": 256, "width": 16, "wide": 64}
LONG = {"layers": 1, "batch": 4, "width": 48, "wide": 48, "steps": 64}


def quadratic(eta, theta):
    """One step on a loss that keeps next to nothing."""
    gradient = jax.grad(lambda t: jnp.sum(jnp.sin(t) * eta))(theta)
    return jnp.sum((theta - 0.1 * gradient) ** 2)
