"""checkpoint-inner-loop: the step of an inner loop saves its inputs only."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checking import (
    MANY_EXAMPLES,
    MANY_PARAMETERS,
    adaptive_meta_loss,
    assert_idempotent,
    assert_memory_falls,
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
from jax.experimental import io_callback
from support import assert_close

import mixflow

X = jnp.array([0.5, -1.5, 2.0])
NAME = "checkpoint-inner-loop"
BEFORE = "canonicalize,cse,fuse-value-and-pullback,canonicalize"


def test_a_step_becomes_a_checkpoint():
    check(
        ir(f"{BEFORE},{NAME}", jax.grad(looped(step)), X),
        """
        CHECK: mixflow.vjp(
        CHECK: jaxpr.scan 3 steps{{.*}}<checkpoint-inner-loop rewrote: each of the 3 steps
        CHECK-NEXT: ^bb0(%[[ETA:[0-9]*]]: {{.*}}, %[[THETA:[0-9]*]]: {{.*}}):
        CHECK-NEXT: %[[NEXT:[0-9]*]] = jaxpr.checkpoint(%[[ETA]], %[[THETA]]) {
        CHECK: mixflow.vjp(
        CHECK: jaxpr.yield(
        CHECK: }
        CHECK: }
        CHECK-NEXT: jaxpr.yield(%[[NEXT]])
        CHECK-NOT: jaxpr.checkpoint
        """,
    )


def test_a_loop_that_is_differentiated_from_outside_becomes_one():
    assert ir(f"{BEFORE},{NAME}", looped(step), X, differentiated=True).count("checkpoint(") == 1


def test_of_nested_loops_the_one_that_takes_the_steps_becomes_one():
    def outer(theta, eta):
        return jax.lax.scan(lambda t, _: (step(t, eta), None), theta, None, length=2)[0] + 1.0

    text = ir(f"{BEFORE},{NAME}", jax.grad(looped(outer)), X)
    assert text.count("rewrote") == text.count("jaxpr.checkpoint") == 1
    lines = "CHECK: jaxpr.scan 3 steps\nCHECK: jaxpr.scan 2 steps{{.*}}rewrote\nCHECK: checkpoint"
    check(text, lines)


def test_both_of_two_nested_loops_that_take_steps_become_one():
    def outer(theta, eta):
        inner = jax.lax.scan(lambda t, _: (step(t, eta), None), theta, None, length=2)[0]
        return step(inner, eta)

    assert ir(f"{BEFORE},{NAME}", jax.grad(looped(outer)), X).count("jaxpr.checkpoint") == 2
    assert_right(looped(outer), X, passes=f"{BEFORE},{NAME}")


# --- does not fire --------------------------------------------------------------------------


def test_not_where_nothing_differentiates_the_loop():
    result = optimised(f"{BEFORE},{NAME}", looped(step), X)
    assert "jaxpr.checkpoint" not in str(result.module)
    assert not result.declines


def test_not_where_the_outer_variable_does_not_reach_the_loop():
    def f(eta):
        return looped(step)(jax.lax.stop_gradient(eta)) * jnp.sum(eta)

    assert "jaxpr.checkpoint" not in ir(f"{BEFORE},{NAME}", jax.grad(f), X)


def test_not_without_a_gradient_in_the_loop():
    f = jax.grad(looped(lambda theta, eta: jnp.sin(theta * eta)))
    assert "jaxpr.checkpoint" not in ir(f"{BEFORE},{NAME}", f, X)


DOTS = functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_not_where_the_user_has_done_it_with_a_policy(wrap):
    f = jax.grad(looped(wrap(DOTS(step))))
    result = optimised(f"{BEFORE},{NAME}", f, X)
    assert str(result.module).count("jaxpr.checkpoint") == 1
    (decline,) = result.declines
    assert decline.by == NAME
    assert "jax.checkpoint of yours" in decline.text


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_in_the_place_of_the_users(wrap):
    """As where there was none, so that gradients can be saved and steps nested."""
    bare, by_hand = (jax.grad(looped(one)) for one in (step, wrap(jax.checkpoint(step))))
    passes = f"{BEFORE},forward-over-reverse,{NAME},save-inner-gradients"
    result = optimised(passes, by_hand, X)
    assert str(result.module).count("jaxpr.checkpoint") == 1
    assert any("in the place of your jax.checkpoint" in one.text for one in result.rewrites)
    value, taken = run_and_measure(mixflow.compile(by_hand, passes=passes), X)
    expected, least = run_and_measure(mixflow.compile(bare, passes=passes), X)
    assert_close(value, jax.jit(bare)(X))
    assert_close(value, expected)
    assert taken == least


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_not_in_the_place_of_the_users_where_that_is_respected(wrap):
    by_hand = jax.grad(looped(wrap(jax.checkpoint(step))))
    passes = f"{BEFORE},forward-over-reverse,{NAME}{{levels=2 respect=true}}"
    result = optimised(passes, by_hand, X)
    assert str(result.module).count("jaxpr.checkpoint") == 1
    (decline,) = (one for one in result.declines if one.by == NAME)
    assert decline.text.endswith("and it is left to you")
    assert_close(mixflow.compile(by_hand, passes=passes)(X), jax.jit(by_hand)(X))
    bare = optimised(passes, jax.grad(looped(step)), X)
    assert any(one.by == NAME for one in bare.rewrites)


def test_not_in_the_place_of_one_with_a_policy_beside_one_without():
    def body(theta, eta):
        return DOTS(step)(jax.checkpoint(step)(theta, eta), eta)

    result = optimised(f"{BEFORE},{NAME}", jax.grad(looped(body)), X)
    assert not result.rewrites
    assert_right(looped(body), X, passes=f"{BEFORE},{NAME}")


def test_a_checkpoint_beside_the_gradient_does_not_count():
    def body(theta, eta):
        return jax.checkpoint(jnp.sin)(step(theta, eta))

    result = optimised(f"{BEFORE},{NAME}", jax.grad(looped(body)), X)
    assert len(result.rewrites) == 1
    assert_right(looped(body), X, passes=f"{BEFORE},{NAME}")


def test_prints_in_a_step_are_not_printed_again(capfd):
    def body(theta, eta):
        jax.debug.print("step {}", theta[0])
        return step(theta, eta)

    def lines(f):
        jax.block_until_ready(f(X))
        jax.effects_barrier()
        return len(capfd.readouterr().out.splitlines())

    plain = jax.grad(looped(body))
    printed = lines(jax.jit(plain))
    assert printed == lines(mixflow.compile(plain)) == 3
    assert lines(jax.jit(jax.grad(mixflow.compile(looped(body))))) == printed


@pytest.mark.parametrize("ordered", [True, False])
def test_a_step_with_a_callback_still_runs(ordered):
    seen = []

    def note(i):
        seen.append(int(i))
        return np.asarray(i, np.float64)

    def f(eta):
        def body(theta, i):
            spec = jax.ShapeDtypeStruct((), np.float64)
            return step(theta, eta) + io_callback(note, spec, i, ordered=ordered), None

        return jnp.sum(jax.lax.scan(body, X, jnp.arange(3))[0])

    expected = jax.jit(jax.value_and_grad(f))(X)
    jax.effects_barrier()
    calls = sorted(seen)
    seen.clear()
    assert_close(mixflow.compile(jax.value_and_grad(f))(X), expected)
    jax.effects_barrier()
    assert sorted(seen) == calls
    assert_close(jax.jit(jax.value_and_grad(mixflow.compile(f)))(X), expected)


# --- idempotent, right, small ---------------------------------------------------------------


def test_it_is_idempotent():
    assert_idempotent(f"{BEFORE},", NAME, jax.grad(looped(step)), X)
    assert_idempotent(f"{BEFORE},", NAME, jax.grad(meta_loss), *meta_args())
    assert_idempotent(f"{BEFORE},", NAME, jax.grad(looped(jax.checkpoint(step))), X)


@pytest.mark.parametrize("passes", [NAME, f"{BEFORE},{NAME}"])
def test_the_numbers_stay(passes):
    assert_meta_loss_right(passes)


def test_the_numbers_stay_in_reversed_unrolled_and_empty_loops():
    def f(eta):
        def body(t, x):
            return (step(t, eta * x), (t, x))

        a, (ts, _) = jax.lax.scan(body, X, jnp.arange(4.0), reverse=True, unroll=2)
        b, _ = jax.lax.scan(body, a, jnp.zeros(0))
        return jnp.sum(b) + jnp.sum(ts**2)

    assert_right(f, X)


def test_the_numbers_stay_with_keys_integers_and_constants_in_the_carry():
    table = jnp.linspace(0.0, 1.0, 9).reshape(3, 3)

    def f(eta):
        def body(carry, x):
            theta, key, count = carry
            key, sub = jax.random.split(key)

            def noisy(t):
                return loss(table @ t, eta) + jnp.sum(t * jax.random.normal(sub, (3,)))

            return (theta - x * jax.grad(noisy)(theta), key, count + 1), count * theta

        carry, outs = jax.lax.scan(body, (X, jax.random.key(1), 0), jnp.linspace(0.1, 0.3, 3))
        return jnp.sum(carry[0]) * carry[2] + jnp.sum(outs)

    assert_right(f, X)


def test_the_step_s_activations_are_not_kept():
    assert_memory_falls(meta_loss, meta_args(**MANY_EXAMPLES), (f"{BEFORE},{NAME}", 0.15))


def test_the_update_s_intermediates_are_not_kept():
    before = f"{BEFORE},forward-over-reverse"
    args = meta_args(**MANY_PARAMETERS)
    assert_memory_falls(adaptive_meta_loss, args, (before, 1.0), (f"{before},{NAME}", 0.5))


def test_memory_grows_with_the_steps_by_their_inputs_alone():
    few, many = meta_args(steps=4, batch=64, width=8), meta_args(steps=20, batch=64, width=8)
    g = mixflow.compile(jax.grad(meta_loss), passes=f"{BEFORE},{NAME}")
    growth = run_and_measure(g, *many)[1] - run_and_measure(g, *few)[1]
    (theta,) = many[1]
    assert 0 < growth < 16 * 2 * (theta.nbytes + many[2][0].nbytes)
