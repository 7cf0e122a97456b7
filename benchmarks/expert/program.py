"""The three tasks of the reference program with an expert's annotations in them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from benchmarks.expert.rule import mixed_mode_gradient
from benchmarks.reference import LOG_RATE, Size, block, normalise

Tree = Any

_GRADIENT = "inner_gradient"


@dataclass(frozen=True)
class Annotations:
    """What the expert adds to the plain program.

    Arguments:
        rule: `mixed_mode_gradient` for the inner gradient.
        blocks: `jax.checkpoint` around each transformer block, in the inner loss and the outer.
        steps: `jax.checkpoint` around the inner step.
        save: keep the inner gradient from the checkpointed step, so that it is not computed twice.
    """

    rule: bool = True
    blocks: bool = True
    steps: bool = True
    save: bool = True


EXPERT = Annotations()


def meta_loss(
    size: Size, task: str = "data_weighting", annotations: Annotations = EXPERT
) -> Callable[..., Any]:
    """V(θ_T(η)), as `benchmarks.reference.meta_loss` has it."""
    return _TASKS[task](_Parts(size, annotations))


@dataclass(frozen=True)
class _Parts:
    """What the tasks are put together from, annotated."""

    size: Size
    annotations: Annotations

    def example_losses(self, theta: Tree, tokens: Any) -> Any:
        one_block = functools.partial(block, heads=self.size.heads)
        if self.annotations.blocks:
            one_block = jax.checkpoint(one_block)
        x = theta["embedding"][tokens[:, :-1]] + theta["positions"]
        for layer in theta["layers"]:
            x = one_block(layer, x)
        logits = normalise(x) @ theta["embedding"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(1)

    def gradient(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """∇_θ of loss(θ, η, batch), named so that a policy can keep it."""
        derivative = mixed_mode_gradient(loss) if self.annotations.rule else jax.grad(loss)
        return lambda *operands: checkpoint_name(derivative(*operands), _GRADIENT)

    def step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The inner step, checkpointed. Inside a scan JAX asks for no barrier against CSE."""
        if not self.annotations.steps:
            return step
        save = jax.checkpoint_policies.save_only_these_names(_GRADIENT)
        policy = save if self.annotations.save else None
        return jax.checkpoint(step, policy=policy, prevent_cse=False)


def _data_weighting(parts: _Parts) -> Callable[..., Any]:
    def inner_loss(theta: Tree, weights: Any, tokens: Any) -> Any:
        return jax.nn.softmax(weights) @ parts.example_losses(theta, tokens)

    gradient_of = parts.gradient(inner_loss)

    def loss(eta: Tree, theta: Tree, batches: Any, validation: Any) -> Any:
        adam = optax.adam(jnp.exp(eta["log_rate"]), eps_root=1e-8)

        @parts.step
        def step(carry: Any, inputs: Any) -> Any:
            theta, state = carry
            updates, state = adam.update(gradient_of(theta, *inputs), state)
            return (optax.apply_updates(theta, updates), state), None

        carry = (theta, adam.init(theta))
        (theta, _), _ = jax.lax.scan(step, carry, (eta["weights"], batches))
        return parts.example_losses(theta, validation).mean()

    return loss


def _maml(parts: _Parts) -> Callable[..., Any]:
    gradient_of, outer_loss = _unweighted(parts)

    def loss(eta: Tree, batches: Any, validation: Any) -> Any:
        adam = optax.adam(math.exp(LOG_RATE), eps_root=1e-8)

        @parts.step
        def step(carry: Any, tokens: Any) -> Any:
            theta, state = carry
            updates, state = adam.update(gradient_of(theta, (), tokens), state)
            return (optax.apply_updates(theta, updates), state), None

        (theta, _), _ = jax.lax.scan(step, (eta, adam.init(eta)), batches)
        return outer_loss(theta, (), validation)

    return loss


def _learning_rates(parts: _Parts) -> Callable[..., Any]:
    gradient_of, outer_loss = _unweighted(parts)

    def loss(eta: Tree, theta: Tree, batches: Any, validation: Any) -> Any:
        adam = optax.scale_by_adam(eps_root=1e-8)

        @parts.step
        def step(carry: Any, tokens: Any) -> Any:
            theta, state = carry
            direction, state = adam.update(gradient_of(theta, (), tokens), state)
            updates = jax.tree.map(lambda rate, d: -jnp.exp(rate) * d, eta, direction)
            return (optax.apply_updates(theta, updates), state), None

        (theta, _), _ = jax.lax.scan(step, (theta, adam.init(theta)), batches)
        return outer_loss(theta, (), validation)

    return loss


def _unweighted(parts: _Parts) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The gradient of the plain mean loss, and that loss; η is not in it."""

    def loss(theta: Tree, _: Tree, tokens: Any) -> Any:
        return parts.example_losses(theta, tokens).mean()

    return parts.gradient(loss), loss


_TASKS = {"data_weighting": _data_weighting, "maml": _maml, "learning_rates": _learning_rates}
