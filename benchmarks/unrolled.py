"""Programs that grow with their code: steps, layers, tasks, that are written out in Python.

Each has a size, how often its code is repeated, and gives a meta-gradient with its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.reference import Size
from benchmarks.reference import arguments as reference_arguments
from benchmarks.reference import meta_loss as reference_loss

Program = tuple[Callable[..., Any], tuple[Any, ...]]

WIDTH = 8
TOKENS = 256
"""Of the reference program's sequences: as figures before XLA are quoted."""


def unrolled_steps(count: int) -> Program:
    """Gradient steps on a small loss, with no loop around them."""

    def loss(theta: Any, eta: Any, x: Any) -> Any:
        for i in range(2):
            x = jnp.tanh(x * theta[i] + eta)
        return jnp.mean(x**2)

    def meta(eta: Any, theta: Any, x: Any) -> Any:
        for _ in range(count):
            theta = theta - 0.1 * jax.grad(loss)(theta, eta, x)
        return loss(theta, 1.0, x)

    return jax.value_and_grad(meta), (jnp.ones(16), jnp.ones((WIDTH, 16)), jnp.ones((64, 16)))


def adam_steps(count: int) -> Program:
    """Steps of optax's Adam on a small network; η weights the examples."""
    optimiser = optax.adam(1e-2)

    def loss(theta: Any, eta: Any, x: Any, y: Any) -> Any:
        error = jnp.tanh(x @ theta["a"]) @ theta["b"] - y
        return jnp.mean(jax.nn.sigmoid(eta) * jnp.sum(error**2, 1))

    def meta(eta: Any, theta: Any, x: Any, y: Any) -> Any:
        state = optimiser.init(theta)
        for _ in range(count):
            updates, state = optimiser.update(jax.grad(loss)(theta, eta, x, y), state)
            theta = optax.apply_updates(theta, updates)
        return loss(theta, jnp.zeros_like(eta), x, y)

    theta = {"a": _drawn(0, 8, 32), "b": _drawn(1, 32, 4)}
    return jax.value_and_grad(meta), (jnp.zeros(64), theta, _drawn(2, 64, 8), _drawn(3, 64, 4))


def unrolled_layers(count: int) -> Program:
    """The reference program with so many layers."""
    size = Size(tokens=TOKENS, layers=count)
    return jax.value_and_grad(reference_loss(size)), reference_arguments(size)


def unrolled_tasks(count: int) -> Program:
    """MAML over a list of tasks: five steps each of a convolutional network, and a learnt rate."""

    def logits(theta: Any, x: Any) -> Any:
        for kernel in theta["kernels"]:
            x = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x - x.mean((0, 1, 2)))
        return x.mean((1, 2)) @ theta["out"]

    def loss(theta: Any, x: Any, y: Any) -> Any:
        chances = jax.nn.log_softmax(logits(theta, x))
        return -jnp.mean(jnp.take_along_axis(chances, y[:, None], -1))

    def meta(theta: Any, rates: Any, tasks: Any) -> Any:
        total = 0.0
        for (x, y), (x_after, y_after) in tasks:
            adapted = theta
            for step in range(5):
                gradient = jax.grad(loss)(adapted, x, y)
                adapted = jax.tree.map(lambda t, g: t - rates[step] * g, adapted, gradient)  # noqa: B023
            total += loss(adapted, x_after, y_after)
        return total / len(tasks)

    widths = [1, 16, 16, 16]
    kernels = [_drawn(i, 3, 3, *widths[i : i + 2]) for i in range(3)]
    theta = {"kernels": kernels, "out": _drawn(9, 16, 5)}
    labels = jnp.arange(25) % 5
    tasks = [
        tuple((100 * _drawn(10 + 2 * i + half, 25, 28, 28, 1), labels) for half in range(2))
        for i in range(count)
    ]
    return jax.value_and_grad(meta, (0, 1)), (theta, jnp.full(5, 0.1), tasks)


def nested_jits(count: int) -> Program:
    """Two steps on a loss that calls a jit so often.

    A jit holds a matrix product: XLA takes minutes to fuse a hundred layers of `tanh(x * w + e)`.
    """
    layer = jax.jit(lambda x, w, e: jnp.tanh(x @ w + e))

    def loss(theta: Any, eta: Any, x: Any) -> Any:
        for i in range(count):
            x = layer(x, theta[i % WIDTH], eta)
        return jnp.mean(x**2)

    def meta(eta: Any, theta: Any, x: Any) -> Any:
        def step(theta: Any, _: None) -> Any:
            return theta - 0.1 * jax.grad(loss)(theta, eta, x), None

        return loss(jax.lax.scan(step, theta, length=2)[0], 1.0, x)

    args = jnp.ones(16), jnp.ones((WIDTH, 16, 16)) / 16, jnp.ones((64, 16))
    return jax.value_and_grad(meta), args


def _drawn(number: int, *shape: int) -> Any:
    """Normal numbers, of the size of a layer's weights."""
    return jax.random.normal(jax.random.key(number), shape) / math.sqrt(math.prod(shape[:-1]))
