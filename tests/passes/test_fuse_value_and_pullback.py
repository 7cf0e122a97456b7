"""fuse-value-and-pullback: one operation for a value and the pullback beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checking import (
    assert_idempotent,
    assert_meta_loss_right,
    assert_right,
    check,
    ir,
    meta_args,
    meta_loss,
)
from jax.experimental import io_callback
from support import assert_close

import mixflow

X = jnp.array([0.5, -1.5, 2.0])
FUSE = "fuse-value-and-pullback"


def loss(theta, eta):
    return jnp.sum(jnp.tanh(theta * eta) ** 2)


def value_and_gradient(x):
    return jax.value_and_grad(loss)(x, X)


def test_a_value_and_its_gradient_become_one():
    check(
        ir(FUSE, value_and_gradient, X),
        """
        CHECK: @main(%[[X:[0-9]*]]: {{.*}}f64[3]
        CHECK-NOT: mixflow.primal
        CHECK: %[[ONE:.*]] = jaxpr.literal 1.0
        CHECK: %[[Y:.*]], %[[G:.*]] = mixflow.vjp [with value](%{{.*}}, %[[X]], %[[ONE]])
        CHECK: jaxpr.yield(%[[Y]], %[[G]])
        CHECK-NOT: mixflow.primal
        """,
    )


def test_the_cotangent_s_computation_moves_before_the_value():
    def f(x):
        y, pullback = jax.vjp(jnp.sin, x)
        return y, pullback(jnp.cos(x) * 2.0)[0]

    check(
        ir(FUSE, f, X),
        """
        CHECK: jaxpr.eqn cos
        CHECK: %[[W:.*]] = jaxpr.eqn mul
        CHECK: mixflow.vjp [with value](%{{.*}}, %[[W]])
        CHECK-NOT: mixflow.primal
        """,
    )
    assert_close(mixflow.compile(f, passes=FUSE)(X), jax.jit(f)(X))


itself = jax.custom_vjp(lambda x: x)
itself.defvjp(lambda x: (x, None), lambda _, g: (g,))


def test_each_pullback_of_a_jit_that_is_called_twice_has_a_value_of_its_own():
    """`cse` does not make one of the two: each holds a rule."""

    @jax.jit
    def value_and_gradient(x):
        gradient, value = jax.grad(lambda x: (jnp.sum(itself(x) ** 2), x), has_aux=True)(x)
        return gradient + value

    def f(x):
        return value_and_gradient(x) + value_and_gradient(x)

    passes = f"canonicalize,cse,{FUSE}"
    assert ir(passes, f, X).count("[with value]") == 2
    assert_right(lambda x: jnp.sum(f(x) ** 2), X, passes=passes)


def test_it_works_inside_loops_branches_and_jits():
    def f(x):
        x = jax.lax.scan(lambda c, _: (value_and_gradient(c)[1], None), x, None, length=2)[0]
        return jax.jit(lambda x: jax.lax.cond(x[0] > 0, value_and_gradient, value_and_gradient, x))(
            x
        )

    text = ir(FUSE, f, X)
    assert text.count("mixflow.vjp [with value]") == 3
    assert "mixflow.primal" not in text


def test_of_two_pullbacks_one_takes_the_value():
    def f(x):
        y, pullback = jax.vjp(jnp.sin, x)
        return y, pullback(X)[0], pullback(x)[0]

    check(
        ir(FUSE, f, X),
        """
        CHECK-NOT: mixflow.primal
        CHECK: %[[Y:.*]], %[[A:.*]] = mixflow.vjp [with value]
        CHECK: %[[B:.*]] = mixflow.vjp
        CHECK: jaxpr.yield(%[[Y]], %[[A]], %[[B]])
        """,
    )


# --- does not fire --------------------------------------------------------------------------


def test_not_where_the_cotangent_needs_the_value():
    def f(x):
        y, pullback = jax.vjp(jnp.sin, x)
        return pullback(jnp.cos(y) + 1.0)[0]

    check(
        ir(FUSE, f, X),
        """
        CHECK: %[[Y:.*]] = mixflow.primal
        CHECK: jaxpr.eqn cos(%[[Y]])
        CHECK: mixflow.vjp(
        """,
    )


def test_not_for_another_function_or_another_point():
    def f(x):
        return (
            jax.vjp(jnp.sin, x)[0],
            jax.vjp(jnp.sin, x * 2)[1](X)[0],
            jax.vjp(jnp.tan, x)[1](X)[0],
        )

    text = ir(f"dce,{FUSE}", f, X)
    assert text.count("mixflow.primal") == 1
    assert "with value" not in text


def test_not_where_there_is_no_value_or_no_pullback():
    assert "with value" not in ir(f"dce,{FUSE}", lambda x: jax.grad(loss)(x, X), X)
    text = ir(FUSE, lambda x: jax.vjp(jnp.sin, x)[0], X)
    assert "mixflow.primal" in text
    assert "mixflow.vjp" not in text


def test_not_across_a_loop_s_border():
    def f(x):
        y, pullback = jax.vjp(jnp.sin, x)
        return y, jax.lax.scan(lambda c, _: (pullback(c)[0], None), x, None, length=2)[0]

    assert "with value" not in ir(FUSE, f, X)
    assert_close(mixflow.compile(f)(X), jax.jit(f)(X))


@pytest.mark.parametrize("ordered", [True, False])
def test_not_past_effects_whose_order_would_change(ordered):
    def f(seen, x):
        def note(what, value):
            seen.append(what)
            return np.asarray(value)

        spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
        y, pullback = jax.vjp(jnp.sin, x)
        io_callback(lambda v: note("first", v), spec, y, ordered=ordered)
        w = io_callback(lambda v: note("second", v), spec, x, ordered=ordered)
        return pullback(w)[0]

    expected, seen = list[str](), list[str]()
    plain = jax.jit(lambda x: f(expected, x))(X)
    result = mixflow.compile(lambda x: f(seen, x), passes=FUSE)(X)
    jax.effects_barrier()
    assert_close(result, plain)
    assert sorted(seen) == sorted(expected) == ["first", "second"]
    if ordered:
        assert seen == expected


def test_it_is_idempotent():
    assert_idempotent("", FUSE, value_and_gradient, X)
    assert_idempotent("", FUSE, jax.grad(meta_loss), *meta_args())


@pytest.mark.parametrize("passes", ["dce", FUSE, f"canonicalize,cse,{FUSE},canonicalize"])
def test_the_numbers_stay(passes):
    assert_meta_loss_right(passes)


def test_the_numbers_stay_with_integers_and_auxiliary_data():
    def f(x):
        def inner(t, i):
            return jnp.sum(jnp.sin(t * x) * i), {"count": i + 1, "mask": t > 0, "value": t * x}

        (value, aux), gradient = jax.value_and_grad(inner, has_aux=True)(X, 3)
        return value + jnp.sum(gradient * aux["value"]) * aux["count"]

    assert_right(f, X, passes=FUSE)
    assert "with value" in ir(FUSE, f, X)
