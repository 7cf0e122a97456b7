"""Custom rules where no tangent of the point reaches them, and rules whose lanes share a result."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from support import assert_close

import mixflow

PASSES = [None, "reverse-over-forward", "forward-over-reverse,reverse-over-forward"]

clip = jax.custom_vjp(lambda x: x)
clip.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.3, 0.3),))

through = jax.custom_vjp(jnp.sin)
through.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (g,))

clips = jax.custom_vjp(jnp.sin)
clips.defvjp(lambda x: (jnp.sin(x), clip(x) ** 2), lambda kept, g: (g * kept,))

LOSSES: dict[str, Any] = {
    "alone": lambda t, e: clip(e) * t**2,
    "beside another rule": lambda t, e: through(t) * clip(e) * t,
    "in a loop": lambda t, e: lax.scan(lambda c, _: (c + clip(e) * t**2, None), 0.0, length=3)[0],
    "in a loop, beside another rule": lambda t, e: lax.scan(
        lambda c, _: (through(c) + clip(e) * t**2, None), t, length=3
    )[0],
    "in a checkpoint": lambda t, e: jax.checkpoint(lambda t: through(t) * clip(e) * t**2)(t),
    "in a branch": lambda t, e: lax.cond(
        t > 0, lambda t: through(t) * clip(e) * t**2, lambda t: t, t
    ),
    "in another rule": lambda t, e: clips(t * e) * t * 5,
    "in an inner gradient": lambda t, e: jax.grad(lambda u: through(u) * u * clip(e))(t) * t**2,
    "in a jit, twice": lambda t, e: jax.jit(clip)(e) * t**2 + through(t) * jax.jit(clip)(e),
    "in a vmap": lambda t, e: jnp.sum(
        jax.vmap(lambda a: clip(e) * through(a * t) * t)(jnp.arange(3.0))
    ),
}


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("place", LOSSES)
def test_a_rule_at_rest_is_used_as_it_is(place: str, passes: str | None) -> None:
    def gradient(e: Any) -> Any:
        return jax.grad(LOSSES[place])(5.0, e)

    expected = jax.jit(jax.grad(gradient))(1.0)
    assert_close(mixflow.compile(jax.grad(gradient), passes=passes)(1.0), expected)
    assert_close(jax.grad(mixflow.compile(gradient, passes=passes))(1.0), expected)


pair = jax.custom_vjp(lambda x, c: (x, c))
pair.defvjp(lambda x, c: ((x, c), None), lambda _, g: (g[0] + 2 * g[1], g[1]))

PLACES: dict[str, Any] = {
    "bare": lambda loss: loss,
    "checkpoint": lambda loss: lambda t, c: jax.checkpoint(lambda t: loss(t, c))(t),
    "scan": lambda loss: lambda t, c: lax.scan(lambda t, _: (loss(t, c), None), t, length=2)[0],
    "cond": lambda loss: lambda t, c: lax.cond(c > 0, lambda t: loss(t, c), lambda t: t, t),
    "jit": jax.jit,
    "vmap": lambda loss: (
        lambda t, c: jnp.sum(jax.vmap(loss, (0, None))(t * jnp.arange(1.0, 3.0), c))
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_lanes_share_no_cotangent_of_a_result_that_is_not_mapped(place: str) -> None:
    loss = PLACES[place](lambda t, c: jnp.prod(jnp.stack(pair(t, c))))
    gradients, ts = jax.vmap(jax.grad(loss), (0, None)), jnp.array([1.0, 10.0])
    expected = jax.jit(gradients)(ts, 3.0)
    assert_close(mixflow.compile(gradients)(ts, 3.0), expected)
    assert_close(jax.vmap(mixflow.compile(jax.grad(loss)), (0, None))(ts, 3.0), expected)

    def second(c: Any) -> Any:
        return jnp.sum(gradients(ts, c) ** 2)

    for passes in PASSES:
        found = mixflow.compile(jax.grad(second), passes=passes)(3.0)
        assert_close(found, jax.jit(jax.grad(second))(3.0))


def in_a_scan(f: Any) -> Any:
    return lambda x: jax.lax.scan(lambda x, _: (f(x), None), x, length=1)[0]


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("place", [jax.checkpoint, jax.jit, in_a_scan])
@pytest.mark.parametrize("outside", [False, True])
def test_a_rule_with_optimize_remat_is_left_to_jax(
    passes: str | None, place: Any, outside: bool
) -> None:
    function = jax.custom_vjp(jnp.sin)
    function.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),), optimize_remat=True)

    def gradient(e: Any) -> Any:
        return jax.grad(lambda t: place(function)(t * e) ** 2)(1.0)

    compiled = functools.partial(mixflow.compile, passes=passes)
    got = jax.grad(compiled(gradient)) if outside else compiled(jax.grad(gradient))
    assert_close(got(0.3), jax.jit(jax.grad(gradient))(0.3))
