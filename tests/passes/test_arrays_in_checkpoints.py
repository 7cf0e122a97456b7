"""Arrays that rules bring along, and what policies save, in checkpoints that passes have made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checking import optimised
from jax.experimental.ode import odeint
from support import assert_close, equations

import mixflow

BEFORE = "canonicalize,cse,fuse-value-and-pullback,canonicalize,forward-over-reverse"
PASSES = f"{BEFORE},checkpoint-inner-loop,save-inner-gradients,segment-loss"

ETA, X = jnp.linspace(0.5, 1.0, 3), jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
THETA = jnp.linspace(-1.0, 2.0, 9).reshape(3, 3)
TABLE = np.array([1.0, 2.0, 3.0])

Function = Callable[..., Any]

tabled = jax.custom_jvp(lambda x: jnp.sin(x) * TABLE)
tabled.defjvps(lambda tangent, _, x: tangent * jnp.cos(x) * TABLE)


def layers(theta: Any, eta: Any, activation: Function, depth: int = 3) -> Any:
    x = X
    for _ in range(depth):
        x = jnp.tanh(activation(x @ theta) * eta)
    return jnp.mean(x**2)


def decay(x: Any) -> Any:
    times, rate = jnp.array([0.0, 0.3]), jnp.ones(())
    return odeint(lambda y, t, w: -y * w * TABLE, x, times, rate, rtol=1e-3, atol=1e-3)[-1]


def meta_loss_of(loss: Function, checkpoint: Function = lambda step: step) -> Function:
    """Two gradient steps, and the loss after them."""

    def meta_loss(eta: Any, theta: Any) -> Any:
        def step(theta: Any, _: Any) -> Any:
            return theta - 0.1 * jax.grad(loss)(theta, eta), None

        theta, _ = jax.lax.scan(checkpoint(step), theta, length=2)
        return loss(theta, eta)

    return meta_loss


def has_barriers_one_by_one(f: Function) -> bool:
    jaxpr = optimised(PASSES, f, ETA, THETA).jaxpr
    return any(isinstance(e.params.get("prevent_cse"), tuple) for e in equations(jaxpr.jaxpr))


def test_arrays_in_segments() -> None:
    f = jax.grad(meta_loss_of(lambda theta, eta: layers(theta, eta, tabled)))
    assert has_barriers_one_by_one(f)
    assert_close(mixflow.compile(f, passes=PASSES)(ETA, THETA), jax.jit(f)(ETA, THETA))


def test_odeint_in_segments() -> None:
    def loss(theta: Any, eta: Any) -> Any:
        return jnp.mean(jnp.tanh(jnp.tanh(decay(X @ theta) * eta) @ theta) ** 2)

    f = jax.grad(lambda eta, theta: jnp.sum(jax.grad(loss)(theta, eta) ** 2))
    assert has_barriers_one_by_one(f)
    # Not run: XLA takes long for it.
    mixflow.compile(f, passes=PASSES).lower(ETA, THETA)


def test_transformed_from_outside() -> None:
    f = meta_loss_of(lambda theta, eta: layers(theta, eta, tabled))
    etas = jnp.stack([ETA, 2.0 * ETA])

    def outer(f: Function) -> Function:
        """Forward mode of reverse mode, batched: every rule of JAX's for a checkpoint."""

        def pushed(eta: Any) -> Any:
            return jax.jvp(lambda eta: jax.grad(f)(eta, THETA), (eta,), (eta,))

        return jax.jit(jax.vmap(pushed))

    assert_close(outer(mixflow.compile(f, passes=PASSES))(etas), outer(f)(etas))


def with_checkpointed_pullback(f: Function) -> Function:
    """A function whose own pullback is a checkpoint with a policy; to mixflow a suspect."""
    g = jax.custom_vjp(f)

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    def pullback(x: Any, cotangent: Any) -> Any:
        return jax.vjp(jax.checkpoint(f), x)[1](cotangent)

    g.defvjp(lambda x: (f(x), x), pullback)
    return g


def test_a_segment_in_a_users_checkpoint_that_saves_what_is_in_it() -> None:
    activation = with_checkpointed_pullback(lambda x: jnp.sin(jnp.cos(x)) * TABLE)
    saving = partial(jax.checkpoint, policy=jax.checkpoint_policies.everything_saveable)
    f = jax.grad(meta_loss_of(lambda theta, eta: layers(theta, eta, activation), saving))
    assert has_barriers_one_by_one(f)
    assert_close(mixflow.compile(f, passes=PASSES)(ETA, THETA), jax.jit(f)(ETA, THETA))


def test_arrays_in_a_loop_of_layers() -> None:
    """Forward mode in the loss makes the layers' scan carry the table; no checkpoint can."""

    def model(theta: Any, x: Any) -> Any:
        def layer(x: Any, _: Any) -> Any:
            return jnp.tanh(jnp.sin(tabled(jnp.tanh(x @ theta)) ** 2)), None

        return jax.lax.scan(layer, x, length=4)[0]

    def loss(theta: Any, eta: Any) -> Any:
        y, slope = jax.jvp(lambda x: model(theta * eta, x), (X,), (jnp.ones_like(X),))
        return jnp.mean(y**2) + jnp.mean(slope**2)

    f = jax.grad(meta_loss_of(loss))
    assert_close(mixflow.compile(f, passes=PASSES)(ETA, THETA), jax.jit(f)(ETA, THETA))


def test_arrays_in_a_loop_of_steps() -> None:
    """Forward mode around the steps makes their scan carry it."""

    def meta_loss(eta: Any, theta: Any) -> Any:
        def loss(theta: Any) -> Any:
            return jnp.mean(jnp.tanh(jnp.sin(X @ (theta * eta))) ** 2)

        def step(theta: Any, _: Any) -> Any:
            return tabled(theta - 0.1 * jax.grad(loss)(theta)), None

        return loss(jax.lax.scan(step, theta, length=4)[0])

    f = jax.grad(lambda eta, theta: jax.jvp(lambda e: meta_loss(e, theta), (eta,), (eta,))[1])
    passes = PASSES.replace("inner-loop", "inner-loop{levels=2}")
    assert_close(mixflow.compile(f, passes=passes)(ETA, THETA), jax.jit(f)(ETA, THETA))


@pytest.mark.parametrize("passes", ["", "forward-over-reverse,checkpoint-inner-loop", None])
def test_a_policy_that_saves_complex_values(passes: str | None) -> None:
    """JAX saves them in a loop alone, and one step may come to stand in none."""
    policy = jax.checkpoint_policies.dots_saveable
    t, x = 1j * jnp.array([[0.8, 0.4], [0.9, 0.8]]), jnp.array([0.2, 0.7])

    def loss(t: Any, e: Any, x: Any) -> Any:
        return jnp.mean(jnp.abs(x @ t * e))

    def meta(e: Any, t: Any) -> Any:
        def step(t: Any, x: Any) -> tuple[Any, None]:
            return e * jax.jit(jax.grad(loss))(t, e, x), None

        t, _ = jax.lax.scan(jax.checkpoint(step, policy=policy), t, x[None])
        return loss(t, e, x)

    gradient = jax.value_and_grad(meta)
    assert_close(mixflow.compile(gradient, passes=passes)(0.7, t), jax.jit(gradient)(0.7, t))
