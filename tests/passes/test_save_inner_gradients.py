"""save-inner-gradients: a recomputed step does not run its loss again."""

from __future__ import annotations

from dataclasses import dataclass

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
    executed,
    ir,
    looped,
    loss,
    meta_args,
    meta_loss,
    optimised,
    run_and_measure,
    step,
)
from support import assert_close, captures
from xdsl.passes import ModulePass, PassPipeline

import mixflow
from mixflow.compiler.analysis.costs import program_cost
from mixflow.compiler.ir.dialects.jaxpr import ScanOp
from mixflow.compiler.ir.importer import import_jaxpr
from mixflow.passes.checkpoint_inner_loop import checkpoint_body
from mixflow.passes.save_inner_gradients import SaveInnerGradients
from mixflow.planner.pipeline import context, parse_passes

X = jnp.array([0.5, -1.5, 2.0])
NAME = "save-inner-gradients"
BEFORE = (
    "canonicalize,cse,fuse-value-and-pullback,canonicalize,"
    "forward-over-reverse,checkpoint-inner-loop"
)


def learned(theta, eta):
    """A step whose backward pass reads the gradient: the rate is active."""
    return theta - eta * jax.grad(loss)(theta, eta)


def test_the_gradient_of_a_step_is_named_and_saved():
    check(
        ir(f"{BEFORE},{NAME}", jax.grad(looped(learned)), X),
        """
        CHECK: jaxpr.checkpoint saving mixflow.inner_gradient
        CHECK: %[[G:[0-9]*]] = mixflow.vjp [symmetric rule](%{{.*}}<save-inner-gradients rewrote
        CHECK: %[[NAMED:[0-9]*]] = mixflow.name "mixflow.inner_gradient"(%[[G]])
        CHECK: jaxpr.eqn mul(%{{[0-9]*}}, %[[NAMED]])
        CHECK-NOT: mixflow.name
        """,
    )


def test_every_leaf_of_every_gradient_is_named():
    def f(eta):
        def body(carry, _):
            g = jax.grad(lambda c: loss(*c))(carry)
            a, b = jax.tree.map(lambda t, g: t - eta * g, carry, g)
            return (learned(a, eta), b), None

        return jnp.sum(jax.lax.scan(body, (X, X), None, length=2)[0][0])

    assert ir(f"{BEFORE},{NAME}", jax.grad(f), X).count("mixflow.name ") == 3
    assert_right(f, X)


def test_the_uses_of_a_fused_value_stay():
    text = ir(f"{BEFORE},{NAME}", jax.grad(meta_loss), *meta_args())
    assert text.count("[with value, symmetric rule]") == 1
    assert text.count("mixflow.name ") == 1


# --- does not fire --------------------------------------------------------------------------


def assert_nothing_saved(passes, f):
    text = ir(passes, f, X)
    assert "saving" not in text
    assert "mixflow.name" not in text


def test_not_without_a_checkpoint():
    without = "canonicalize,fuse-value-and-pullback,forward-over-reverse"
    assert_nothing_saved(f"{without},{NAME}", jax.grad(looped(learned)))


def test_not_in_a_checkpoint_of_the_user_with_a_policy():
    by_hand = jax.checkpoint(learned, policy=jax.checkpoint_policies.dots_saveable)
    assert_nothing_saved(f"{BEFORE},{NAME}", jax.grad(looped(by_hand)))


def test_not_in_a_checkpoint_of_another_pass():
    @dataclass(frozen=True)
    class CheckpointAnything(ModulePass):
        name = "checkpoint-anything"

        def apply(self, ctx, op):
            for loop in [one for one in op.walk() if isinstance(one, ScanOp)]:
                checkpoint_body(loop.regions[0].block)

    module = import_jaxpr(captures(jax.grad(looped(learned)), X).jaxpr, differentiated=False)
    others = parse_passes("canonicalize,fuse-value-and-pullback,forward-over-reverse").passes
    PassPipeline((*others, CheckpointAnything(), SaveInnerGradients())).apply(context(), module)
    assert "jaxpr.checkpoint(" in str(module)
    assert "mixflow.name" not in str(module)


def test_not_where_the_gradient_is_not_rewritten():
    without = "canonicalize,fuse-value-and-pullback,checkpoint-inner-loop"
    assert_nothing_saved(f"{without},{NAME}", jax.grad(looped(learned)))


def test_not_in_a_loop_inside_the_step():
    def body(theta, eta):
        def one(t, _):
            return jax.lax.cond(t[0] > 0, lambda t: learned(t, eta), lambda t: t, t), None

        return jax.lax.scan(one, theta, None, length=2)[0]

    assert_nothing_saved(f"{BEFORE},{NAME}", jax.grad(looped(body)))


# --- does not fire where the backward pass does not read the gradient -----------------------


def halved(theta, eta):
    return theta - 0.5 * jax.grad(loss)(theta, eta) / 3.0 + 0.1 * theta


def momentum(carry, eta):
    theta, velocity = carry
    velocity = 0.9 * velocity + jax.grad(loss)(theta, eta)
    return theta - 0.1 * velocity, velocity


def within_a_jit(theta, eta):
    update = jax.jit(lambda g: jnp.where(jnp.arange(3) > 0, -0.1 * g, 0.0).astype(X.dtype))
    return theta + update(jax.grad(loss)(theta, eta))


def preconditioned(theta, eta):
    table = jnp.linspace(0.0, 1.0, 9).reshape(3, 3)
    return theta - jnp.concatenate([(table @ jax.grad(loss)(theta, eta))[1:], jnp.zeros(1)])


def by_its_sign(theta, eta):
    g = jax.grad(loss)(theta, eta)
    return theta - 0.1 * jnp.where(g > 0, theta, -theta)


def clipped(theta, eta):
    g = jax.grad(loss)(theta, eta)
    return theta - g / jnp.maximum(1.0, jnp.linalg.norm(g))


def twice(theta, eta):
    return learned(theta, 0.1) - 0.1 * jax.grad(loss)(step(theta, eta), eta)


def blocked(theta, eta):
    return theta * jax.lax.stop_gradient(jax.grad(loss)(theta, eta))


def tuned(theta, eta):
    return theta - jax.nn.sigmoid(eta[0]) * jax.grad(loss)(theta, eta)


LINEAR = [step, halved, momentum, within_a_jit, preconditioned]
READ = [learned, tuned, by_its_sign, clipped, twice, blocked]


def looped_over_tree(body, steps=3):
    """As `looped`, from eta, for a step that may carry more than the parameters."""

    def f(eta):
        init = (eta, X) if body is momentum else eta
        carry, _ = jax.lax.scan(lambda c, _: (body(c, eta), None), init, None, length=steps)
        return jnp.sum(jnp.sin(jax.tree.leaves(carry)[0]))

    return f


def gradients_run(passes, f):
    """How often a gradient is computed in the meta-gradient, and the operations of all of it."""
    closed = jax.make_jaxpr(jax.grad(mixflow.compile(f, passes=passes)))(X)
    flops = program_cost(closed).flops
    assert flops is not None
    return executed(closed, "mixflow_vjp"), flops


@pytest.mark.parametrize("body", LINEAR)
def test_not_where_the_update_is_linear_in_the_gradient(body):
    f = looped_over_tree(body)
    result = optimised(f"{BEFORE},{NAME}", jax.grad(f), X)
    assert "mixflow.name" not in str(result.module)
    (decline,) = result.declines
    assert decline.by == NAME
    assert "(length 3) does not read it" in decline.text
    count, flops = gradients_run(f"{BEFORE},{NAME}", f)
    assert count == 3, "it is computed again"
    assert flops == gradients_run(BEFORE, f)[1]


@pytest.mark.parametrize("body", READ)
def test_but_where_it_is_not(body):
    f = looped_over_tree(body)
    assert "mixflow.name" in ir(f"{BEFORE},{NAME}", jax.grad(f), X)
    saved, without = gradients_run(f"{BEFORE},{NAME}", f), gradients_run(BEFORE, f)
    assert saved[0] < without[0]
    assert saved[1] < without[1]


def test_of_two_gradients_the_one_that_is_read_is_saved():
    def body(theta, eta):
        return step(learned(theta, eta), eta)

    result = optimised(f"{BEFORE},{NAME}", jax.grad(looped(body)), X)
    assert str(result.module).count("mixflow.name ") == 1
    assert len(result.declines) == 1
    assert_right(looped(body), X)


def test_the_numbers_stay_where_the_gradient_is_not_saved():
    def both(eta):
        return sum(looped_over_tree(body)(eta) for body in LINEAR)

    assert_right(both, X, passes=f"{BEFORE},{NAME}")


# --- idempotent, right, small, and cheap ------------------------------------------------------


def test_it_is_idempotent():
    assert_idempotent(f"{BEFORE},", NAME, jax.grad(looped(learned)), X)
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

    # The inner steps are rerun with the outer one, which asks for their gradients.
    assert ir(f"{BEFORE},{NAME}", jax.grad(looped(body)), X).count("mixflow.name ") == 1
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
