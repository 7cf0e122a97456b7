"""The reference program: data weighting through Adam on a decoder-only transformer.

Plain JAX with no annotation: layers unrolled in Python, a scan of inner Adam steps, η holds one
weight per example of each batch and a log learning rate.
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


def arguments(size: Size) -> tuple[Any, ...]:
    """η, θ, training batches and a validation batch."""
    key, token_key = jax.random.split(jax.random.key(0))
    shape = (size.steps + 1, size.batch, size.tokens + 1)
    tokens = jax.random.randint(token_key, shape, 0, size.vocabulary)
    eta = {"weights": jnp.zeros((size.steps, size.batch)), "log_rate": jnp.float32(-6.0)}
    return eta, _weights(size, key), tokens[:-1], tokens[-1]


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


def _normalise(x: Any) -> Any:
    return jax.nn.standardize(x, axis=-1, epsilon=1e-5)


def _block(layer: Tree, x: Any, heads: int) -> Any:
    batch, length, width = x.shape
    qkv = (_normalise(x) @ layer["qkv"]).reshape(batch, length, 3, heads, width // heads)
    query, key, value = jnp.moveaxis(qkv, 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(width // heads)
    causal = jnp.tril(jnp.ones((length, length), bool))
    attended = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", attended, value).reshape(batch, length, width)
    x = x + mixed @ layer["out"]
    return x + jax.nn.gelu(_normalise(x) @ layer["up"]) @ layer["down"]


def _example_losses(size: Size, theta: Tree, tokens: Any) -> Any:
    x = theta["embedding"][tokens[:, :-1]] + theta["positions"]
    for layer in theta["layers"]:
        x = _block(layer, x, size.heads)
    logits = _normalise(x) @ theta["embedding"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(1)


def meta_loss(size: Size) -> Callable[..., Any]:
    """V(θ_T(η)), a scalar function of (η, θ, batches, validation)."""

    def inner_loss(theta: Tree, weights: Any, tokens: Any) -> Any:
        return jax.nn.softmax(weights) @ _example_losses(size, theta, tokens)

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
        return _example_losses(size, theta, validation).mean()

    return loss
