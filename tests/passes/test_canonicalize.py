"""canonicalize: jits around derivatives are inlined, unread values and dead code dropped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checking import assert_idempotent, assert_right, check, ir, meta_args, meta_loss
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding
from support import assert_close

import mixflow

X = jnp.array([0.5, -1.5, 2.0])


def loss(theta, eta):
    return jnp.sum(jnp.tanh(theta * eta) ** 2)


def gradient(x):
    return jax.grad(loss)(x, X)


def test_a_jit_around_a_derivative_is_dissolved():
    def f(x):
        return jax.jit(lambda y: gradient(y * 2) + 1)(x)

    check(ir("dce", f, X), "CHECK: jaxpr.jit")
    check(
        ir("canonicalize", f, X),
        """
        CHECK-NOT: jaxpr.jit
        CHECK: @main(%[[X:[0-9]*]]
        CHECK: %[[Y:.*]] = jaxpr.eqn mul(%[[X]],
        CHECK: %[[G:.*]] = mixflow.vjp(%{{.*}}, %[[Y]], %{{.*}})
        CHECK: %[[Z:.*]] = jaxpr.eqn add(%[[G]],
        CHECK: jaxpr.yield(%[[Z]])
        """,
    )


def test_nested_jits_around_a_derivative_are_dissolved():
    def f(x):
        return jax.jit(jax.jit(jax.jit(gradient)))(x)

    check(ir("canonicalize", f, X), "CHECK: mixflow.vjp\nCHECK-NOT: jaxpr.jit")


def test_a_dissolved_jit_may_give_back_its_arguments():
    def f(x):
        return jax.jit(lambda y, z: (y, gradient(z), y, 2.0, z))(x, x + 1)

    assert "jaxpr.jit" not in ir("canonicalize", f, X)
    assert_close(mixflow.compile(f, passes="canonicalize")(X), jax.jit(f)(X))


def test_a_jit_is_dissolved_inside_regions():
    def f(x):
        step = jax.jit(lambda c: jax.grad(lambda y: jnp.sum(jnp.sin(y) ** 2))(c) * 2)
        x = jax.lax.scan(lambda c, _: (step(c), None), x, None, length=2)[0]
        x = jax.lax.cond(x[0] > 0, step, lambda y: y, x)
        return jax.grad(lambda y: jnp.sum(step(y)))(x) + jax.checkpoint(step)(x)

    assert "jaxpr.jit" not in ir("canonicalize", f, X)
    assert_close(mixflow.compile(f, passes="canonicalize")(X), jax.jit(f)(X))


TABLE = np.linspace(-1.0, 1.0, 9).reshape(3, 3)


@pytest.mark.parametrize("where", ["main", "scan", "checkpoint", "cond", "gradient"])
def test_a_jit_with_constants_is_dissolved_where_they_may_go(where):
    """A loop's body has no arrays of its own: there the jit that carries them stays."""
    table = jnp.asarray(TABLE)
    step = jax.jit(lambda c: gradient(TABLE @ c) + table[0])

    def f(x):
        match where:
            case "main":
                return step(x)
            case "scan":
                return jax.lax.scan(lambda c, _: (step(c), None), x, None, length=2)[0]
            case "checkpoint":
                return jax.checkpoint(step)(x)
            case "cond":
                return jax.lax.cond(x[0] > 0, step, lambda y: y, x)
            case _:
                return jax.grad(lambda y: jnp.sum(step(y)))(x)

    assert ("jaxpr.jit" in ir("canonicalize", f, X)) == (where in ("scan", "checkpoint", "cond"))
    assert_close(mixflow.compile(f)(X), jax.jit(f)(X))

    def g(x):
        return jnp.sum(f(x) ** 2)

    assert_right(g, X)


# --- does not fire --------------------------------------------------------------------------


def test_not_without_a_derivative():
    f = jax.jit(lambda y: jnp.sin(y) * 2)
    assert "jaxpr.jit" in ir("canonicalize", f, X)


SHARDING = SingleDeviceSharding(jax.devices()[0])
LAYOUT = Format(Layout(major_to_minor=(0,)), SHARDING)


@pytest.mark.parametrize(
    "options",
    [
        {"in_shardings": SHARDING},
        {"in_shardings": LAYOUT},
        {"out_shardings": LAYOUT},
        {"out_shardings": SHARDING},
        {"donate_argnums": 0},
        {"keep_unused": True},
    ],
    ids=str,
)
def test_not_where_the_jit_means_something(options):
    f = jax.jit(gradient, **options)
    assert "jaxpr.jit" in ir("canonicalize", lambda x: f(x * 1), X)
    assert_close(mixflow.compile(lambda x: f(x * 1))(X), gradient(X))


# --- values that nobody reads ---------------------------------------------------------------


def test_an_unread_value_is_dropped():
    check(ir("fuse-value-and-pullback", gradient, X), "CHECK: mixflow.vjp [with value]")
    check(
        ir("fuse-value-and-pullback,canonicalize", gradient, X),
        """
        CHECK-NOT: with value
        CHECK: %[[G:[0-9]*]] = mixflow.vjp(
        CHECK: jaxpr.yield(%[[G]])
        """,
    )


def test_a_value_that_is_read_is_kept():
    f = jax.value_and_grad(loss)
    text = ir("fuse-value-and-pullback,canonicalize", f, X, X)
    check(text, "CHECK: mixflow.vjp [with value]")


def test_a_value_is_kept_where_only_one_of_several_is_read():
    f = jax.value_and_grad(lambda x: (jnp.sum(jnp.sin(x)), {"a": x * 2, "b": x * 3}), has_aux=True)

    def g(x):
        return (f(x)[0][1]["b"], f(x)[1])

    assert "with value" in ir("fuse-value-and-pullback,canonicalize", g, X)
    assert_close(mixflow.compile(g)(X), jax.jit(g)(X))


def test_a_remark_survives_the_dropping_of_the_value():
    f = jax.grad(lambda eta: jnp.sum(gradient(eta) ** 2))
    before = ir("fuse-value-and-pullback,forward-over-reverse", f, X)
    after = ir("fuse-value-and-pullback,forward-over-reverse,canonicalize", f, X)
    assert before.count("rewrote") == after.count("rewrote") == 1
    assert "[symmetric rule]" in after


def test_dead_code_is_dropped_and_effects_are_not():
    def f(x):
        jax.jit(gradient)(x)
        jax.debug.print("{}", x)
        return x

    check(ir("canonicalize", f, X), "CHECK-NOT: mixflow\nCHECK: {{debug_print|debug_callback}}")


def test_it_is_idempotent():
    def f(x):
        return jax.jit(lambda y: gradient(y) + 1)(x)

    assert_idempotent("", "canonicalize", f, X)
    before = "fuse-value-and-pullback,"
    assert_idempotent(before, "canonicalize", jax.grad(meta_loss), *meta_args())


def test_the_numbers_stay():
    assert_right(jax.jit(meta_loss), *meta_args(), passes="canonicalize")
