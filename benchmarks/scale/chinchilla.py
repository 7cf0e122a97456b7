"""Chinchilla-style transformers with rotary embeddings, trained with weighted examples by Adam.

Plain JAX: layers unrolled in Python and a scan of inner Adam steps. η is one weight for each
example of each batch, and a log learning rate. `Hand` is what an expert adds.

Sources: Hoffmann et al., "Training Compute-Optimal Large Language Models" (2022, arXiv 2203.15556),
table A9, for the sizes; Su et al., "RoFormer" (2021, arXiv 2104.09864), for the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from benchmarks.expert.rule import mixed_mode_gradient
from benchmarks.reference import LOG_RATE, normalise

Tree = Any
Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]

BATCH = 4
_GRADIENT = "inner_gradient"


@dataclass(frozen=True)
class Model:
    """A transformer's size. The perceptron is four times as wide as the model."""

    width: int
    heads: int
    layers: int
    vocabulary: int = 32000

    @property
    def parameters(self) -> int:
        """How many numbers θ holds."""
        return self.vocabulary * self.width + 12 * self.layers * self.width**2


@dataclass(frozen=True)
class Hand:
    """What is added by hand: around a block, around the inner step, in place of `jax.grad`."""

    block: Wrapper = lambda block: block
    step: Wrapper = lambda step: step
    gradient: Wrapper = jax.grad


def _named_gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
    gradient = mixed_mode_gradient(loss)
    return lambda *operands: checkpoint_name(gradient(*operands), _GRADIENT)


def _saving_gradients(step: Callable[..., Any]) -> Callable[..., Any]:
    policy = jax.checkpoint_policies.save_only_these_names(_GRADIENT)
    return jax.checkpoint(step, policy=policy, prevent_cse=False)


PLAIN = Hand()
EXPERT = Hand(block=jax.checkpoint, step=_saving_gradients, gradient=_named_gradient)
"""MixFlow-MG's rule by hand, checkpointed blocks and steps, saved inner gradients."""


def shapes(model: Model, steps: int, tokens: int) -> tuple[Any, ...]:
    """η, θ, training batches and a validation batch, as shapes."""
    return jax.eval_shape(lambda: arguments(model, steps, tokens))


def arguments(model: Model, steps: int, tokens: int) -> tuple[Any, ...]:
    """η, θ, training batches and a validation batch."""
    weight_key, token_key = jax.random.split(jax.random.key(0))
    shape = (steps + 1, BATCH, tokens + 1)
    batches = jax.random.randint(token_key, shape, 0, model.vocabulary)
    eta = {"weights": jnp.zeros((steps, BATCH)), "log_rate": jnp.full((), LOG_RATE)}
    return eta, _weights(model, weight_key), batches[:-1], batches[-1]


def _weights(model: Model, key: Any) -> Tree:
    keys = iter(jax.random.split(key, 1 + 4 * model.layers))

    def dense(inputs: int, outputs: int) -> Any:
        return jax.random.normal(next(keys), (inputs, outputs)) / math.sqrt(inputs)

    width = model.width
    shapes = {"qkv": 3 * width, "out": width, "up": 4 * width}
    return {
        "embedding": dense(model.vocabulary, width),
        "layers": [
            {
                **{name: dense(width, outputs) for name, outputs in shapes.items()},
                "down": dense(4 * width, width),
            }
            for _ in range(model.layers)
        ],
    }


def rotated(x: Any) -> Any:
    """Queries or keys, (batch, length, heads, size), turned by angles that grow with the place."""
    length, half = x.shape[1], x.shape[-1] // 2
    rates = 10000.0 ** (-jnp.arange(half) / half)
    angles = (jnp.arange(length)[:, None] * rates)[:, None]
    left, right = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], -1)


def _block(layer: Tree, x: Any, heads: int) -> Any:
    batch, length, width = x.shape
    qkv = (normalise(x) @ layer["qkv"]).reshape(batch, length, 3, heads, width // heads)
    query, key, value = jnp.moveaxis(qkv, 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", rotated(query), rotated(key))
    causal = jnp.tril(jnp.ones((length, length), bool))
    scaled = jnp.where(causal, scores / math.sqrt(width // heads), -jnp.inf)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scaled), value)
    x = x + mixed.reshape(batch, length, width) @ layer["out"]
    return x + jax.nn.gelu(normalise(x) @ layer["up"]) @ layer["down"]


def meta_loss(model: Model, hand: Hand = PLAIN) -> Callable[..., Any]:
    """V(θ_T(η)), a scalar function of what `arguments` returns; η comes first."""
    block = hand.block(lambda layer, x: _block(layer, x, model.heads))

    def example_losses(theta: Tree, tokens: Any) -> Any:
        x = theta["embedding"][tokens[:, :-1]]
        for layer in theta["layers"]:
            x = block(layer, x)
        logits = normalise(x) @ theta["embedding"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(1)

    def inner_loss(theta: Tree, weights: Any, tokens: Any) -> Any:
        return jax.nn.softmax(weights) @ example_losses(theta, tokens)

    gradient = hand.gradient(inner_loss)

    def loss(eta: Tree, theta: Tree, batches: Any, validation: Any) -> Any:
        adam = optax.adam(jnp.exp(eta["log_rate"]), eps_root=1e-8)

        @hand.step
        def step(carry: Any, inputs: Any) -> Any:
            theta, state = carry
            updates, state = adam.update(gradient(theta, *inputs), state)
            return (optax.apply_updates(theta, updates), state), None

        (theta, _), _ = jax.lax.scan(step, (theta, adam.init(theta)), (eta["weights"], batches))
        return example_losses(theta, validation).mean()

    return loss
