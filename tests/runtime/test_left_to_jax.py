"""Programs that JAX runs and does not differentiate as mixflow would: they are JAX's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_close

import mixflow
from mixflow.planner.plan import Plan

REWRITTEN = Plan(symmetric=True, transposed=True, levels=1).passes


@jax.custom_vjp
def halved(x: Any) -> Any:
    return x


# The forward rule is a call of the function, which has a rule of its own one order further.
halved.defvjp(lambda x: (halved(x), x), lambda x, g: (g / 2,))


def looped(h: Any) -> Any:
    return jax.lax.scan(lambda h, _: (halved(h), None), h, length=2)[0]


def through_its_own_rule(t: Any, e: Any) -> Any:
    return jax.grad(lambda h: jnp.vdot(jax.grad(lambda h: jnp.sum(looped(h * e) ** 2))(h), t))(t)


@jax.checkpoint
def value_that_nobody_reads(t: Any, e: Any) -> Any:
    """JAX has no second derivative of gammainc in its first argument, and is asked for none."""

    def value_and_point(h: Any) -> Any:
        return jnp.sum(jax.scipy.special.gammainc(t, 0.5)), h * e

    return sum(jax.grad(value_and_point, has_aux=True)(t))


def meta(loss: Any) -> Any:
    def meta_loss(e: Any, t: Any) -> Any:
        def step(t: Any, _: Any) -> Any:
            return t - 0.1 * jax.grad(lambda t: jnp.sum(loss(t, e) ** 2))(t), None

        return jnp.sum(jax.lax.scan(step, t, length=3)[0])

    return jax.value_and_grad(meta_loss)


@pytest.mark.parametrize("passes", [None, REWRITTEN], ids=["planned", "forced"])
@pytest.mark.parametrize(
    "loss", [through_its_own_rule, value_that_nobody_reads], ids=lambda loss: loss.__name__
)
def test_what_plain_jax_runs_runs(loss: Any, passes: str | None) -> None:
    args = jnp.array([0.4, 0.6]), jnp.array([0.3, 0.8])
    expected = jax.jit(meta(loss))(*args)
    compiled = mixflow.compile(meta(loss), passes=passes)
    assert_close(compiled(*args), expected)
    assert_close(jax.jit(compiled)(*args), expected)


def test_the_report_says_so() -> None:
    args = jnp.array([0.4, 0.6]), jnp.array([0.3, 0.8])
    program = mixflow.compile(meta(value_that_nobody_reads)).optimised(*args)
    (decline,) = [one.text for one in program.declines if one.by == "capture"]
    assert decline.startswith("JAX does not differentiate it as mixflow would: ")
    assert "igamma_grad_a" in decline


def test_what_jax_does_not_run_raises_as_it_does() -> None:
    def twice(e: Any) -> Any:
        return jax.grad(
            lambda e: jnp.sum(jax.grad(lambda e: jax.scipy.special.gammainc(e, 0.5))(e))
        )(e)

    with pytest.raises(NotImplementedError) as plain:
        jax.jit(twice)(0.3)
    with pytest.raises(NotImplementedError) as ours:
        mixflow.compile(twice)(0.3)
    assert str(ours.value).splitlines()[0] == str(plain.value).splitlines()[0]
