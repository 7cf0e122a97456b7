"""forward-over-reverse: pullbacks that are differentiated again get the symmetric rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from checking import (
    MANY_EXAMPLES,
    assert_idempotent,
    assert_memory_falls,
    assert_meta_loss_right,
    assert_right,
    check,
    ir,
    memory_of_unrolled_steps,
    meta_args,
    meta_loss,
    optimised,
)
from support import assert_close

import mixflow

X = jnp.array([0.5, -1.5, 2.0])
FOR = "forward-over-reverse"


def loss(theta, eta):
    return jnp.sum(jnp.tanh(theta * eta) ** 2)


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x * 4) / 4 * x


straight_through.defvjp(lambda x: (jnp.round(x * 4) / 4 * x, x), lambda x, g: (g * jnp.cos(x),))


@jax.custom_vjp
def calls_itself(x):
    return jnp.sin(x) * x


calls_itself.defvjp(
    lambda x: (calls_itself(x), x), lambda x, g: (g * (jnp.cos(x) * x + jnp.sin(x)),)
)


def suspect_loss(theta, eta):
    return jnp.sum(straight_through(theta * eta) ** 2)


def meta(inner):
    return lambda eta: jnp.sum(jnp.sin(X - 0.1 * jax.grad(inner)(X, eta)))


def test_the_inner_of_two_gradients_is_marked():
    check(
        ir(f"canonicalize,{FOR}", jax.grad(meta(loss)), X),
        """
        CHECK: mixflow.vjp(
        CHECK-NEXT: ^bb0
        CHECK: mixflow.vjp [symmetric rule](%{{.*}}<forward-over-reverse rewrote: {{.*}}pushforward
        CHECK-NOT: symmetric rule
        """,
    )


def test_a_gradient_is_marked_where_the_function_is_differentiated_from_outside():
    text = ir(f"canonicalize,{FOR}", meta(loss), X, differentiated=True)
    check(text, "CHECK: mixflow.vjp [symmetric rule]")


def test_a_gradient_in_every_kind_of_region_is_marked():
    def f(eta):
        step = jax.grad(loss)
        theta = jax.lax.scan(lambda t, _: (t - step(t, eta), None), X, None, length=2)[0]
        theta = jax.lax.cond(eta[0] > 0, lambda t: step(t, eta), lambda t: t, theta)
        return jnp.sum(jax.checkpoint(step)(theta, eta) + jax.jit(step)(theta, eta))

    assert ir(f"canonicalize,{FOR}", jax.grad(f), X).count("[symmetric rule]") == 4


def test_a_fused_value_and_gradient_is_marked():
    text = ir(f"fuse-value-and-pullback,{FOR}", jax.grad(meta_loss), *meta_args())
    assert "[with value, symmetric rule]" in text


# --- does not fire --------------------------------------------------------------------------


def test_not_where_nothing_differentiates_it_again():
    result = optimised(f"canonicalize,{FOR}", meta(loss), X)
    assert "symmetric rule" not in str(result.module)
    assert not result.rewrites
    assert not result.declines


def test_not_where_the_outer_variable_does_not_reach_it():
    f = jax.grad(lambda eta: jnp.sum(jax.grad(loss)(X, jax.lax.stop_gradient(eta)) * eta))
    assert "symmetric rule" not in ir(f"canonicalize,{FOR}", f, X)


def test_not_with_a_custom_rule_that_is_not_trusted():
    result = optimised(f"canonicalize,{FOR}", jax.grad(meta(suspect_loss)), X)
    assert "symmetric rule" not in str(result.module)
    (decline,) = result.declines
    assert decline.by == FOR
    assert "straight_through" in decline.text
    assert "assume_symmetric" in decline.text
    assert "test_forward_over_reverse.py" in decline.at
    check(str(result.module), "CHECK: mixflow.vjp suspect(%{{.*}}<forward-over-reverse declined:")


@pytest.mark.parametrize("names", ["all", ("straight_through",)])
def test_a_custom_rule_that_the_user_vouches_for_is_marked(names):
    f = jax.grad(meta(suspect_loss))
    text = ir(f"canonicalize,{FOR}", f, X, assume_symmetric=names)
    assert "[symmetric rule]" in text
    other = ir(f"canonicalize,{FOR}", f, X, assume_symmetric=("another",))
    assert "symmetric rule" not in other


def test_a_rule_that_calls_its_own_function_runs_when_vouched_for():
    # As JAX's documentation writes them; such a rule has no forward mode.
    def inner(theta, eta):
        return jnp.sum(calls_itself(theta * eta) ** 2)

    f = jax.grad(meta(inner))
    assert_close(mixflow.compile(f, assume_symmetric="all")(X), jax.jit(f)(X))
    decline, *_ = mixflow.compile(f, assume_symmetric="all").optimised(X).declines
    assert "no forward mode" in decline.text


def test_a_suspect_that_is_not_differentiated_again_is_no_decline():
    assert not optimised(f"canonicalize,{FOR}", meta(suspect_loss), X).declines


# --- idempotent, right, small ---------------------------------------------------------------


def test_it_is_idempotent():
    assert_idempotent("canonicalize,", FOR, jax.grad(meta(loss)), X)
    assert_idempotent("canonicalize,", FOR, jax.grad(meta(suspect_loss)), X)
    assert_idempotent("fuse-value-and-pullback,", FOR, jax.grad(meta_loss), *meta_args())


@pytest.mark.parametrize("passes", ["canonicalize", FOR, f"canonicalize,{FOR}"])
def test_the_numbers_stay(passes):
    assert_meta_loss_right(passes)


@pytest.mark.parametrize("inner", [loss, suspect_loss], ids=lambda f: f.__name__)
def test_the_numbers_stay_with_one_step(inner):
    assert_right(meta(inner), X, passes=f"canonicalize,{FOR}")


def test_the_numbers_stay_in_third_order():
    def third(eta):
        return jnp.sum(jax.grad(meta(loss))(eta) ** 2)

    assert_right(third, X, passes=f"canonicalize,{FOR}")
    assert "symmetric rule" in ir(f"canonicalize,{FOR}", third, X)


def test_the_numbers_stay_in_forward_mode_outside():
    f = meta(loss)
    compiled = mixflow.compile(f, passes=FOR)
    for transform in (jax.jacfwd, jax.jacrev, jax.hessian):
        assert_close(transform(compiled)(X), jax.jit(transform(f))(X))


def test_the_inner_loop_takes_less_memory():
    before = "canonicalize,cse,fuse-value-and-pullback,canonicalize"
    args = meta_args(**MANY_EXAMPLES)
    assert_memory_falls(meta_loss, args, (before, 1.01), (f"{before},{FOR}", 0.15))


@pytest.mark.parametrize("rule", [FOR, "reverse-over-forward"])
def test_each_unrolled_step_runs_again_by_itself(rule):
    """Without barriers, or where XLA takes cotangents out of them, all are rerun at once."""

    def memory(steps):
        return memory_of_unrolled_steps(jnp.tanh, rule, steps=steps, rows=512, layers=6)

    assert memory(6) < 1.5 * memory(2)
