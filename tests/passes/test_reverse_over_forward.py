"""reverse-over-forward: pullbacks that are differentiated again get the transposed rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from checking import (
    adaptive_meta_loss,
    assert_idempotent,
    assert_right,
    check,
    ir,
    memory_of_unrolled_steps,
    meta_args,
    meta_loss,
    optimised,
    run_and_measure,
)
from support import assert_close

import mixflow

X = jnp.array([0.5, -1.5, 2.0])
ROF = "reverse-over-forward"
BOTH = f"forward-over-reverse,{ROF}"
CHECKPOINTED = f"canonicalize,cse,fuse-value-and-pullback,canonicalize,{ROF},checkpoint-inner-loop"
SEGMENTED = f"canonicalize,{BOTH},checkpoint-inner-loop,save-inner-gradients,segment-loss"


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x * 4) / 4


straight_through.defvjp(lambda x: (jnp.round(x * 4) / 4, None), lambda _, g: (g,))


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


def smooth_loss(theta, eta):
    return jnp.sum(jnp.tanh(theta * eta) ** 2)


def untrue_loss(theta, eta):
    return jnp.sum(straight_through(jnp.tanh(theta * eta)) ** 2 * theta)


def clipped_loss(theta, eta):
    return jnp.sum(clipped(theta * eta) ** 2)


def meta(inner):
    return lambda eta: jnp.sum(jnp.sin(X - 0.1 * jax.grad(inner)(X, eta)))


def test_the_inner_of_two_gradients_is_marked():
    check(
        ir(f"canonicalize,{ROF}", jax.grad(meta(untrue_loss)), X),
        """
        CHECK: mixflow.vjp suspect [transposed rule]({{.*}}rewrote: {{.*}}pushforward
        CHECK-NOT: transposed rule
        """,
    )


def test_after_forward_over_reverse_it_takes_what_that_declined():
    def both(eta):
        return meta(untrue_loss)(eta) + meta(smooth_loss)(eta)

    text = ir(f"canonicalize,{BOTH}", jax.grad(both), X)
    assert text.count("[transposed rule]") == text.count("[symmetric rule]") == 1
    assert_right(both, X, passes=BOTH)


def test_alone_it_takes_every_gradient():
    assert ir(ROF, jax.grad(meta(smooth_loss)), X).count("[transposed rule]") == 1


def test_not_a_rule_that_is_not_linear():
    result = optimised(ROF, jax.grad(meta(clipped_loss)), X)
    assert "transposed rule" not in str(result.module)
    (remark,) = result.declines
    assert remark.by == ROF
    assert "clipped" in remark.text
    assert "not linear" in remark.text


def test_not_where_nobody_differentiates_again():
    assert "transposed rule" not in ir(ROF, meta(smooth_loss), X)


def test_it_is_idempotent():
    assert_idempotent("", ROF, jax.grad(meta(untrue_loss)), X)


@pytest.mark.parametrize("inner", [smooth_loss, untrue_loss, clipped_loss])
@pytest.mark.parametrize("passes", [ROF, BOTH])
def test_the_numbers(inner, passes):
    assert_right(meta(inner), X, passes=passes)


@pytest.mark.parametrize("loss", [meta_loss, adaptive_meta_loss])
@pytest.mark.parametrize(
    "after",
    ["", ",save-inner-gradients", ",save-inner-gradients,segment-loss", "{levels=2},segment-loss"],
)
def test_with_the_other_passes(loss, after):
    assert_right(loss, *meta_args(layers=3), passes=CHECKPOINTED + after)


def test_it_takes_less_memory_than_jax():
    args = meta_args(steps=4, batch=256, width=16, layers=4)
    f = jax.value_and_grad(meta_loss)
    expected, before = run_and_measure(jax.jit(f), *args)
    result, after = run_and_measure(mixflow.compile(f, passes=CHECKPOINTED), *args)
    assert_close(result, expected)
    assert after < 0.5 * before


def test_the_third_derivative():
    def third(eta):
        return jnp.sum(jax.grad(meta(untrue_loss))(eta) ** 2)

    assert_right(third, X, passes=f"canonicalize,{ROF}")


def smoothed(x, g):
    """The pullback of a rule, with a short loop in it."""
    return jax.lax.scan(lambda g, _: (g * jax.nn.sigmoid(x), None), g, length=2)[0]


@jax.custom_vjp
def with_a_loop(x):
    return jax.nn.gelu(x)


with_a_loop.defvjp(lambda x: (jax.nn.gelu(x), x), lambda x, g: (jax.jit(smoothed)(x, g),))


def test_a_short_loop_in_a_rule_takes_no_more_memory_than_the_function():
    def figures(act):
        return memory_of_unrolled_steps(act, SEGMENTED, steps=2, rows=256, layers=8)

    assert figures(with_a_loop) <= 1.1 * figures(jax.nn.gelu)


def test_the_plan_takes_it_where_the_symmetric_rule_is_not_allowed():
    eta, theta, xs = meta_args(steps=4, batch=64, width=8, layers=8)

    def loss(theta, eta, x):
        y = x
        for layer in theta:
            y = straight_through(jnp.tanh(y @ layer))
        return jnp.mean(jax.nn.sigmoid(eta) * jnp.sum((y - x) ** 2, 1))

    def outer(eta, theta, xs):
        def step(theta, x):
            gradient = jax.grad(loss)(theta, eta["weights"], x)
            return jax.tree.map(lambda t, g: t - eta["rate"] * g, theta, gradient), None

        return loss(jax.lax.scan(step, theta, xs)[0], 0.0, xs[0])

    f = jax.value_and_grad(outer)
    compiled = mixflow.compile(f)
    assert ROF in compiled.optimised(eta, theta, xs).passes
    expected, before = run_and_measure(jax.jit(f), eta, theta, xs)
    result, after = run_and_measure(compiled, eta, theta, xs)
    assert_close(result, expected)
    assert after < 0.25 * before
