"""A backward rule that is not linear, in a function that is called twice with the same operands.

JAX traces a function under `jax.jit` or `jax.checkpoint` once, so the two calls are equal, equation
by equation. They must not become one: the rule would see the sum of both cotangents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from support import assert_close

import mixflow

PREPARE = "canonicalize,roll-repeated-blocks,cse,fuse-value-and-pullback,canonicalize"
PASSES = [
    None,
    "cse",
    PREPARE,
    "fuse-value-and-pullback",
    f"{PREPARE},forward-over-reverse,reverse-over-forward,segment-loss{{slack=0}}",
]

clip = jax.custom_vjp(lambda x: x)
clip.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.3, 0.3),))

through = jax.custom_vjp(jnp.sin)
through.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (g,))


def clipped(e: Any) -> Any:
    return clip(e) * 2.0


def gradient(inner: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    return jax.jit(lambda e: jax.grad(inner)(2.0, e))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "a jit": jax.jit(clipped),
    "a checkpoint": jax.checkpoint(clipped),
    "a checkpoint in a jit": jax.jit(jax.checkpoint(clipped)),
    "a scan in a jit": jax.jit(
        lambda e: lax.scan(lambda c, _: (c + clipped(e), None), 0.0, length=2)[0]
    ),
    "a cond in a jit": jax.jit(lambda e: lax.cond(e > 0, clipped, lambda e: e, e)),
    "a vmap in a jit": jax.jit(lambda e: jnp.sum(jax.vmap(clipped)(jnp.stack([e, e])))),
    "a gradient": gradient(lambda t, e: clip(e) * t**2 * 5),
    "a gradient with another rule": gradient(lambda t, e: through(t) * clip(e) * t**2),
    "a value and its gradient": jax.jit(
        lambda e: sum(jax.value_and_grad(lambda t: clip(e) * t**2 * 5)(2.0))
    ),
    "a gradient with aux": jax.jit(
        lambda e: sum(jax.grad(lambda t: (clip(e) * t**2 * 5, clip(e) * t), has_aux=True)(2.0))
    ),
    "a gradient with a jit": gradient(lambda t, e: jax.jit(clip)(e) * t**3 + jax.jit(clip)(e) * t),
}


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_calls_stay_two(name: str, passes: str | None) -> None:
    def twice(e: Any) -> Any:
        return FUNCTIONS[name](e) * 3.0 + FUNCTIONS[name](e) * e

    def once(e: Any) -> Any:
        value = FUNCTIONS[name](e)
        return value * 3.0 + value * e

    expected = jax.jit(jax.grad(twice))(1.2)
    assert abs(expected - jax.grad(once)(1.2)) > 0.1
    assert_close(mixflow.compile(jax.grad(twice), passes=passes)(1.2), expected)
    assert_close(jax.grad(mixflow.compile(twice, passes=passes))(1.2), expected)
