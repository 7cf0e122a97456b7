"""peel-inactive-step: a step whose state nothing is differentiated in stands before its loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from checking import (
    MANY_EXAMPLES,
    MANY_PARAMETERS,
    THETA,
    adaptive_meta_loss,
    assert_idempotent,
    assert_memory_falls,
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
from support import assert_close, captures

import mixflow
from mixflow.compiler.analysis.costs import program_cost
from mixflow.planner.pipeline import optimise, parse_passes

X = jnp.array([0.5, -1.5, 2.0])
NAME = "peel-inactive-step"
BEFORE = "canonicalize,cse,fuse-value-and-pullback,canonicalize"
AFTER = "forward-over-reverse,checkpoint-inner-loop,save-inner-gradients"
ALL = f"{BEFORE},{NAME},{AFTER}"


def compiled(passes, f):
    return mixflow.compile(jax.grad(f), passes=passes)


def gradient_by(passes, f, *args):
    return optimised(passes, jax.grad(f), *args).jaxpr


def test_the_first_step_keeps_its_inputs_before_a_loop_of_the_others():
    check(
        ir(f"{BEFORE},{NAME}", jax.grad(looped(step)), X),
        """
        CHECK: mixflow.vjp(
        CHECK: %[[NEXT:[0-9]*]] = jaxpr.checkpoint inline(
        CHECK: mixflow.vjp({{.*}}peel-inactive-step rewrote: the first of 3 steps
        CHECK: jaxpr.scan 2 steps, 1 consts, 1 carried({{.*}}, %[[NEXT]])
        CHECK-NOT: checkpoint
        """,
    )


def test_a_step_without_any_such_gradient_is_not_run_again():
    def rates(eta):
        body = lambda theta, _: (theta - eta * jax.grad(loss)(theta, 1.0), None)  # noqa: E731
        return jnp.sum(jnp.sin(jax.lax.scan(body, THETA, None, length=3)[0]))

    text = ir(f"{BEFORE},{NAME}", jax.grad(rates), X)
    assert "jaxpr.scan 2 steps" in text
    assert "jaxpr.checkpoint" not in text
    assert_right(rates, X, passes=ALL)


def test_of_two_steps_none_is_left_in_a_loop():
    text = ir(f"{BEFORE},{NAME}", jax.grad(looped(step, 2)), X)
    assert "jaxpr.scan" not in text
    assert text.count("jaxpr.checkpoint inline") == 2


def test_a_single_step_is_taken_out_of_its_loop():
    """XLA would open the loop, and merge the recomputed step with the first run of it."""
    started_from_eta = lambda eta: jnp.sum(jax.lax.scan(  # noqa: E731
        lambda t, _: (step(t, eta), None), eta, None, length=1
    )[0])  # fmt: skip
    for f in (started_from_eta, looped(step, 1)):
        assert "jaxpr.scan" not in ir(f"{BEFORE},{NAME}", jax.grad(f), X)
        assert_right(f, X, passes=ALL)


# --- the numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_numbers_stay_with_what_a_loop_runs_over_and_stacks_up(steps, reverse):
    def f(eta, batches):
        def body(carry, inputs):
            theta, key, count = carry
            rate, batch = inputs
            key, mine = jax.random.split(key)
            noise = jax.random.normal(mine, theta.shape)
            value, gradient = jax.value_and_grad(loss)(theta + 0.1 * noise, eta * batch)
            return (theta - rate * gradient, key, count + 1), (value, count)

        carry = (THETA, jax.random.key(1), 0)
        inputs = (jnp.exp(-eta[0]) * jnp.arange(1.0, steps + 1), batches)
        (theta, _, count), (values, counts) = jax.lax.scan(body, carry, inputs, reverse=reverse)
        return jnp.sum(theta**2) + jnp.sum(values * counts[::-1]) + count

    assert_right(f, X, jnp.linspace(0.5, 1.5, 3 * steps).reshape(steps, 3), passes=ALL)


def test_the_numbers_stay_under_vmap_and_in_loops_in_loops():
    def outer(theta, eta):
        inner = jax.lax.scan(lambda t, _: (step(t, eta), None), theta, None, length=2)[0]
        return step(inner, eta)

    nested = looped(outer)
    assert_right(nested, X, passes=ALL)
    assert_right(lambda xs: jnp.sum(jax.vmap(looped(step))(xs)), jnp.stack([X, 2 * X]), passes=ALL)


def test_the_numbers_stay_with_levels():
    levels = ALL.replace("inner-loop", "inner-loop{levels=2}")
    assert_right(meta_loss, *meta_args(steps=6), passes=levels)


def test_in_less_memory_where_the_state_is_large():
    """The state that the loop starts from is not kept a second time."""
    args = meta_args(**{**MANY_PARAMETERS, "steps": 2})
    assert_memory_falls(adaptive_meta_loss, args, (f"{BEFORE},{AFTER}", 1.0), (ALL, 0.9))


def test_what_a_loop_runs_over_is_not_copied():
    args = meta_args(steps=32, batch=512, width=4)
    _, without = run_and_measure(compiled(f"{BEFORE},{AFTER}", meta_loss), *args)
    _, peeled = run_and_measure(compiled(ALL, meta_loss), *args)
    assert peeled < without + args[2].nbytes / 8


def test_in_less_work():
    """Of the first gradient's derivative the forward pass is left."""
    args = meta_args(**{**MANY_EXAMPLES, "steps": 2})
    flops = [
        program_cost(gradient_by(passes, meta_loss, *args)).flops or 0.0
        for passes in (f"{BEFORE},{AFTER}", ALL)
    ]
    assert flops[1] < 0.9 * flops[0]


# --- does not fire --------------------------------------------------------------------------


def started_from(eta):
    """MAML: the state is what is differentiated."""
    return jnp.sum(jax.lax.scan(lambda t, _: (step(t, 1.0), None), eta, None, length=3)[0])


def checkpointed(eta):
    return looped(jax.checkpoint(step))(eta)


def with_effects(eta):
    def body(theta, eta):
        jax.debug.print("{}", theta)
        return step(theta, eta)

    return looped(body)(eta)


def without_gradients(eta):
    return looped(lambda theta, eta: jnp.sin(theta * eta))(eta)


def test_not_with_effects():
    """In a function that is differentiated from outside: a gradient of it is left to JAX."""

    def rewrites(f):
        program = captures(f, X)
        return optimise(program, parse_passes(f"{BEFORE},{NAME}"), differentiated=True).rewrites

    assert rewrites(looped(step))
    assert not rewrites(with_effects)


@pytest.mark.parametrize("f", [started_from, checkpointed, without_gradients])
def test_not(f):
    result = optimised(f"{BEFORE},{NAME}", jax.grad(f), X)
    assert not result.rewrites
    assert "jaxpr.scan 3 steps" in str(result.module)


def test_idempotent():
    assert_idempotent(f"{BEFORE},", NAME, jax.grad(looped(step, 5)), X)


def test_not_where_a_rule_is_not_linear():
    """In a loop JAX calls such a rule with a tangent of zeros; before the loop it would not."""
    shifted = jax.custom_jvp(lambda x: x)
    shifted.defjvp(lambda primals, tangents: (shifted(*primals), tangents[0] + primals[0]))

    def f(eta):
        def body(theta, _):
            return jax.grad(lambda t: jnp.sum(shifted(t) ** 2 * eta))(theta), None

        return jax.lax.scan(body, X, None, length=2)[0]

    def pushed(f):
        return jax.jit(lambda eta: jax.jvp(f, (eta,), (jnp.ones_like(eta),)))

    peeled = mixflow.compile(f, passes=f"{NAME},forward-over-reverse")
    assert_close(pushed(peeled)(X), pushed(jax.jit(f))(X))
