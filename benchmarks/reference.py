"""The reference program: three meta-learning tasks through Adam on a decoder-only transformer.

Plain JAX with no annotation: layers unrolled in Python and a scan of inner Adam steps. What η is
depends on the task:

- "data_weighting": one weight per example of each batch, and a log learning rate.
- "maml": the parameters that the inner loop starts from; its learning rate is a constant.
- "learning_rates": a log learning rate for every single parameter, applied to Adam's direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = Any
Activation = Callable[[Any], Any]

LOG_RATE = -6.0
"""The inner learning rate's logarithm: where η holds rates, what they start from."""


@dataclass(frozen=True)
class Size:
    """The program's size; the default is the one that figures are quoted for."""

    steps: int = 2
    layers: int = 12
    width: int = 128
    heads: int = 4
    tokens: int = 512
    batch: int = 4
    vocabulary: int = 512


def arguments(size: Size, task: str = "data_weighting") -> tuple[Any, ...]:
    """η, θ, training batches and a validation batch; for "maml", where η is θ, without θ."""
    key, token_key = jax.random.split(jax.random.key(0))
    shape = (size.steps + 1, size.batch, size.tokens + 1)
    tokens = jax.random.randint(token_key, shape, 0, size.vocabulary)
    theta = _weights(size, key)
    log_rate = jnp.full((), LOG_RATE)
    if task == "maml":
        return theta, tokens[:-1], tokens[-1]
    if task == "learning_rates":
        eta = jax.tree.map(lambda weight: jnp.full(weight.shape, log_rate), theta)
    else:
        eta = {"weights": jnp.zeros((size.steps, size.batch)), "log_rate": log_rate}
    return eta, theta, tokens[:-1], tokens[-1]


def _weights(size: Size, key: Any) -> Tree:
    keys = iter(jax.random.split(key, 2 + 4 * size.layers))

    def dense(inputs: int, outputs: int) -> Any:
        return jax.random.normal(next(keys), (inputs, outputs)) / math.sqrt(inputs)

    width = size.width
    return {
        "embedding": dense(size.vocabulary, width),
        "positions": dense(size.tokens, width),
        "layers": [
            {
                "qkv": dense(width, 3 * width),
                "out": dense(width, width),
                "up": dense(width, 4 * width),
                "down": dense(4 * width, width),
            }
            for _ in range(size.layers)
        ],
    }


def normalise(x: Any) -> Any:
    """Zero mean and unit variance along the last axis."""
    return jax.nn.standardize(x, axis=-1, epsilon=1e-5)


def block(layer: Tree, x: Any, heads: int, activation: Activation = jax.nn.gelu) -> Any:
    """One layer: causal self-attention, then a two-layer perceptron, both residual."""
    batch, length, width = x.shape
    qkv = (normalise(x) @ layer["qkv"]).reshape(batch, length, 3, heads, width // heads)
    query, key, value = jnp.moveaxis(qkv, 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(width // heads)
    causal = jnp.tril(jnp.ones((length, length), bool))
    attended = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", attended, value).reshape(batch, length, width)
    x = x + mixed @ layer["out"]
    return x + activation(normalise(x) @ layer["up"]) @ layer["down"]


def example_losses(
    size: Size, theta: Tree, tokens: Any, activation: Activation = jax.nn.gelu
) -> Any:
    """The mean cross-entropy of each example's next tokens."""
    x = theta["embedding"][tokens[:, :-1]] + theta["positions"]
    for layer in theta["layers"]:
        x = block(layer, x, size.heads, activation)
    logits = normalise(x) @ theta["embedding"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(1)


def _mean_loss(size: Size, activation: Activation = jax.nn.gelu) -> Callable[..., Any]:
    def loss(theta: Tree, tokens: Any) -> Any:
        return example_losses(size, theta, tokens, activation).mean()

    return loss


def _data_weighting(size: Size, activation: Activation) -> Callable[..., Any]:
    def inner_loss(theta: Tree, weights: Any, tokens: Any) -> Any:
        return jax.nn.softmax(weights) @ example_losses(size, theta, tokens, activation)

    def loss(eta: Tree, theta: Tree, batches: Any, validation: Any) -> Any:
        adam = optax.adam(jnp.exp(eta["log_rate"]), eps_root=1e-8)

        def step(carry: Any, inputs: Any) -> Any:
            theta, state = carry
            weights, tokens = inputs
            gradient = jax.grad(inner_loss)(theta, weights, tokens)
            updates, state = adam.update(gradient, state)
            return (optax.apply_updates(theta, updates), state), None

        carry = (theta, adam.init(theta))
        (theta, _), _ = jax.lax.scan(step, carry, (eta["weights"], batches))
        return example_losses(size, theta, validation, activation).mean()

    return loss


def _maml(size: Size, activation: Activation) -> Callable[..., Any]:
    inner_loss = _mean_loss(size, activation)

    def loss(eta: Tree, batches: Any, validation: Any) -> Any:
        adam = optax.adam(math.exp(LOG_RATE), eps_root=1e-8)

        def step(carry: Any, tokens: Any) -> Any:
            theta, state = carry
            gradient = jax.grad(inner_loss)(theta, tokens)
            updates, state = adam.update(gradient, state)
            return (optax.apply_updates(theta, updates), state), None

        (theta, _), _ = jax.lax.scan(step, (eta, adam.init(eta)), batches)
        return inner_loss(theta, validation)

    return loss


def _learning_rates(size: Size, activation: Activation) -> Callable[..., Any]:
    inner_loss = _mean_loss(size, activation)

    def loss(eta: Tree, theta: Tree, batches: Any, validation: Any) -> Any:
        adam = optax.scale_by_adam(eps_root=1e-8)

        def step(carry: Any, tokens: Any) -> Any:
            theta, state = carry
            gradient = jax.grad(inner_loss)(theta, tokens)
            direction, state = adam.update(gradient, state)
            updates = jax.tree.map(lambda rate, d: -jnp.exp(rate) * d, eta, direction)
            return (optax.apply_updates(theta, updates), state), None

        (theta, _), _ = jax.lax.scan(step, (theta, adam.init(theta)), batches)
        return inner_loss(theta, validation)

    return loss


_TASKS = {"data_weighting": _data_weighting, "maml": _maml, "learning_rates": _learning_rates}

TASKS = tuple(_TASKS)
"""The tasks' names."""


def meta_loss(
    size: Size, task: str = "data_weighting", activation: Activation = jax.nn.gelu
) -> Callable[..., Any]:
    """V(θ_T(η)), a scalar function of what `arguments(size, task)` returns; η comes first."""
    return _TASKS[task](size, activation)


def gradient_step(size: Size) -> Callable[..., Any]:
    """∇V(θ), one plain gradient of the loss; takes what `meta_loss` takes, for any task.

    It is the unit in which a meta-gradient's time can be told on one machine and compared on
    another.
    """
    mean_loss = _mean_loss(size)

    def gradient(*args: Any) -> Any:
        theta, _, validation = args[-3:]
        return jax.grad(mean_loss)(theta, validation)

    return gradient
