"""save-inner-gradients: a recomputed step does not run its loss again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from checking import (
    MANY_EXAMPLES,
    MANY_PARAMETERS,
    adaptive_meta_loss,
    assert_idempotent,
    assert_meta_loss_right,
    assert_right,
    check,
    ir,
    looped,
    loss,
    meta_args,
    meta_loss,
    optimised,
    run_and_measure,
    step,
)
from support import assert_close

import mixflow
from mixflow.compiler.analysis.costs import program_cost

X = jnp.array([0.5, -1.5, 2.0])
NAME = "save-inner-gradients"
BEFORE = (
    "canonicalize,cse,fuse-value-and-pullback,canonicalize,"
    "forward-over-reverse,checkpoint-inner-loop"
)


def test_the_gradient_of_a_step_is_named_and_saved():
    check(
        ir(f"{BEFORE},{NAME}", jax.grad(looped(step)), X),
        """
        CHECK: jaxpr.checkpoint saving mixflow.inner_gradient
        CHECK: %[[G:[0-9]*]] = mixflow.vjp [self-adjoint](%{{.*}}<save-inner-gradients rewrote
        CHECK: %[[NAMED:[0-9]*]] = mixflow.name "mixflow.inner_gradient"(%[[G]])
        CHECK: jaxpr.eqn mul(%{{[0-9]*}}, %[[NAMED]])
        CHECK-NOT: mixflow.name
        """,
    )


def test_every_leaf_of_every_gradient_is_named():
    def f(eta):
        def body(carry, _):
            a, b = jax.tree.map(lambda t, g: t - g, carry, jax.grad(lambda c: loss(*c))(carry))
            return (step(a, eta), b), None

        return jnp.sum(jax.lax.scan(body, (X, X), None, length=2)[0][0])

    assert ir(f"{BEFORE},{NAME}", jax.grad(f), X).count("mixflow.name ") == 3
    assert_right(f, X)


def test_the_uses_of_a_fused_value_stay():
    text = ir(f"{BEFORE},{NAME}", jax.grad(meta_loss), *meta_args())
    assert text.count("[with value, self-adjoint]") == 1
    assert text.count("mixflow.name ") == 1


# --- does not fire --------------------------------------------------------------------------


def assert_nothing_saved(passes, f):
    text = ir(passes, f, X)
    assert "saving" not in text
    assert "mixflow.name" not in text


def test_not_without_a_checkpoint():
    assert_nothing_saved(
        f"canonicalize,fuse-value-and-pullback,forward-over-reverse,{NAME}", jax.grad(looped(step))
    )


def test_not_in_a_checkpoint_of_the_user():
    assert_nothing_saved(f"{BEFORE},{NAME}", jax.grad(looped(jax.checkpoint(step))))


def test_not_where_the_gradient_is_not_self_adjoint():
    without = "canonicalize,fuse-value-and-pullback,checkpoint-inner-loop"
    assert_nothing_saved(f"{without},{NAME}", jax.grad(looped(step)))


def test_not_in_a_loop_inside_the_step():
    def body(theta, eta):
        def one(t, _):
            return jax.lax.cond(t[0] > 0, lambda t: step(t, eta), lambda t: t, t), None

        return jax.lax.scan(one, theta, None, length=2)[0]

    assert_nothing_saved(f"{BEFORE},{NAME}", jax.grad(looped(body)))


# --- idempotent, right, small, and cheap ------------------------------------------------------


def test_it_is_idempotent():
    assert_idempotent(f"{BEFORE},", NAME, jax.grad(looped(step)), X)
    assert_idempotent(f"{BEFORE},", NAME, jax.grad(meta_loss), *meta_args())


@pytest.mark.parametrize("passes", [BEFORE, f"{BEFORE},{NAME}"])
def test_the_numbers_stay(passes):
    assert_meta_loss_right(passes)


def test_the_numbers_stay_where_a_gradient_is_a_result_itself():
    def f(eta):
        def body(theta, x):
            gradient = jax.grad(loss)(theta, eta * x)
            return gradient, (gradient, gradient * 2, theta)

        theta, outs = jax.lax.scan(body, X, jnp.arange(1.0, 4.0))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((theta, outs)))

    assert_right(f, X, passes=f"{BEFORE},{NAME}")


def test_the_numbers_stay_in_nested_loops():
    def body(theta, eta):
        inner = jax.lax.scan(lambda t, _: (step(t, eta), None), theta, None, length=2)[0]
        return step(inner, eta)

    assert_right(looped(body), X)


def test_the_loss_is_not_run_again():
    args = meta_args(**MANY_EXAMPLES)
    g = jax.grad(meta_loss)
    without = program_cost(mixflow.compile(g, passes=BEFORE).trace(*args).jaxpr).flops
    saved = program_cost(mixflow.compile(g, passes=f"{BEFORE},{NAME}").trace(*args).jaxpr).flops
    assert without is not None
    assert saved is not None
    assert saved < 0.85 * without


def test_what_is_saved_are_the_gradients_alone():
    args = meta_args(**MANY_PARAMETERS)
    g = jax.grad(adaptive_meta_loss)
    expected, plain = run_and_measure(jax.jit(g), *args)
    recomputed, without = run_and_measure(mixflow.compile(g, passes=BEFORE), *args)
    result, saved = run_and_measure(mixflow.compile(g, passes=f"{BEFORE},{NAME}"), *args)
    assert_close(recomputed, expected)
    assert_close(result, expected)
    gradients = len(args[2]) * sum(layer.nbytes for layer in args[1])
    assert without < saved < without + 1.1 * gradients
    assert saved < 0.6 * plain


def test_the_report_of_a_program_names_all_three_rewrites():
    result = optimised(f"{BEFORE},{NAME}", jax.grad(meta_loss), *meta_args())
    assert [remark.by for remark in result.rewrites] == [
        "checkpoint-inner-loop",
        "forward-over-reverse",
        "save-inner-gradients",
    ]
    assert not result.declines
