"""Meta-losses with several loops: epochs of batches, tasks one by one, trainings one after another.

Each line that calls `jax.lax.scan` or `jax.lax.map` is a loop that plans call by that line.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def loss(theta, eta, batch):
    x, y = batch
    out = jnp.tanh(x @ theta["in"]) @ theta["out"]
    return jnp.mean(jnp.exp(eta["weight"]) * (out - y) ** 2)


def descend(theta, eta, batch):
    """One step of gradient descent, whose rate is learned."""
    gradient = jax.grad(loss)(theta, eta, batch)
    return jax.tree.map(lambda t, g: t - jnp.exp(eta["rate"]) * g, theta, gradient), None


def parameters(width, seed=0):
    inward, outward = jax.random.split(jax.random.key(seed))
    return {
        "in": jax.random.normal(inward, (4, width)) / 2,
        "out": jax.random.normal(outward, (width, 1)) / width,
    }


def batches(count, rows=4):
    xs = jax.random.normal(jax.random.key(1), (count, rows, 4))
    return xs, jnp.sin(xs.sum(-1, keepdims=True))


ETA = {"rate": jnp.array(-7.0), "weight": jnp.array(0.1)}


def epochs(eta, theta, data, *, count, around=lambda epoch: epoch):
    """The loss after some epochs over the same batches; `around` wraps an epoch."""

    @around
    def epoch(theta, _):
        theta, _ = jax.lax.scan(lambda t, batch: descend(t, eta, batch), theta, data)
        return theta, None

    theta, _ = jax.lax.scan(epoch, theta, length=count)
    return loss(theta, eta, jax.tree.map(lambda one: one[0], data))


def tasks(eta, theta, data, *, steps):
    """The mean loss of tasks that are adapted to one after the other."""

    def task(batch):
        adapted, _ = jax.lax.scan(lambda t, _: descend(t, eta, batch), theta, length=steps)
        return loss(adapted, eta, batch)

    return jnp.mean(jax.lax.map(task, data))


def trainings(eta, thetas, data):
    """The losses after trainings of three nets, each with data and a loop of its own."""
    first, second, third = thetas
    first, _ = jax.lax.scan(lambda t, batch: descend(t, eta, batch), first, data[0])
    second, _ = jax.lax.scan(lambda t, batch: descend(t, eta, batch), second, data[1])
    third, _ = jax.lax.scan(lambda t, batch: descend(t, eta, batch), third, data[2])
    last = [jax.tree.map(lambda one: one[-1], batch) for batch in data]
    ends = zip((first, second, third), last, strict=True)
    return sum(loss(theta, eta, batch) for theta, batch in ends)


def trainings_args(*specs):
    """Arguments for nets of some width, each with a number of batches and their rows."""
    thetas = tuple(parameters(width) for width, _, _ in specs)
    return ETA, thetas, tuple(batches(count, rows) for _, count, rows in specs)
