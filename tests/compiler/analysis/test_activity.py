"""Which derivatives and loops an enclosing differentiation reaches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import captures

from mixflow.compiler.analysis.activity import Activity, find_activity
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.ir.importer import import_jaxpr

X = jnp.array([0.5, -1.5, 2.0])


def loss(theta, eta):
    return jnp.sum(jnp.tanh(theta * eta) ** 2)


def gradient(eta):
    return jax.grad(loss)(X, eta)


def activity(f: Any, *args: Any, differentiated: bool) -> tuple[Activity, int]:
    """What was found, and how many pullbacks there are."""
    module = import_jaxpr(captures(f, *args).jaxpr, differentiated=differentiated)
    found = find_activity(main_function(module))
    return found, sum(isinstance(op, VjpOp) for op in module.walk())


def active_pullbacks(f: Any, *args: Any, differentiated: bool = True) -> tuple[int, int]:
    found, total = activity(f, *(args or (X,)), differentiated=differentiated)
    return len(found.pullbacks), total


def test_one_gradient_is_not_active_by_itself():
    assert active_pullbacks(gradient, differentiated=False) == (0, 1)


def test_one_gradient_is_active_in_a_function_that_is_differentiated():
    assert active_pullbacks(gradient) == (1, 1)


def test_the_inner_of_two_gradients_is_active():
    # The outer function stands in two operations, its value and its pullback.
    f = jax.value_and_grad(lambda eta: jnp.sum(gradient(eta) ** 2))
    assert active_pullbacks(f, differentiated=False) == (1, 3)


def test_of_three_gradients_the_two_inner_ones_are_active():
    def twice(eta):
        return jnp.sum(jax.grad(lambda e: jnp.sum(gradient(e) ** 2))(eta) ** 2)

    module = import_jaxpr(captures(jax.grad(twice), X).jaxpr, differentiated=False)
    found = find_activity(main_function(module))
    outermost = [op for op in main_function(module).body.block.ops if isinstance(op, VjpOp)]
    assert len(outermost) == 1
    assert outermost[0] not in found.pullbacks
    inside = {op for op in outermost[0].body.walk() if isinstance(op, VjpOp)}
    assert len(inside) > 1
    assert inside <= found.pullbacks


@pytest.mark.parametrize(
    "cut",
    [
        lambda eta: X + 0 * eta.shape[0],
        jax.lax.stop_gradient,
        jnp.floor,
        lambda eta: eta.astype(int).astype(float),
        lambda eta: (eta > 0) * 1.0,
        lambda eta: jnp.argsort(eta) * 1.0,
    ],
    ids=["constant", "stop_gradient", "floor", "integers", "booleans", "indices"],
)
def test_a_gradient_that_the_input_does_not_reach_is_inactive(cut):
    assert active_pullbacks(lambda eta: gradient(cut(eta)) + eta) == (0, 1)


def test_a_gradient_that_only_another_argument_reaches_is_inactive():
    outer = jax.grad(lambda eta, other: jnp.sum(gradient(other) * eta))
    assert active_pullbacks(outer, X, X, differentiated=False)[0] == 0
    outer = jax.grad(lambda eta, other: jnp.sum(gradient(other) * eta), argnums=1)
    assert active_pullbacks(outer, X, X, differentiated=False)[0] == 1


def test_a_gradient_is_active_where_only_its_cotangent_is():
    def f(eta):
        return jax.vjp(jnp.sin, X)[1](eta)[0]

    assert active_pullbacks(f) == (1, 1)


def test_activity_goes_through_a_loop_by_way_of_every_carry():
    def f(eta):
        def step(carry, _):
            a, b, c = carry  # after three steps c depends on eta
            return (eta, a, b), gradient(c)

        return jax.lax.scan(step, (X, X, X), None, length=4)[1]

    found, total = activity(f, X, differentiated=True)
    assert (len(found.pullbacks), total, len(found.loops)) == (1, 1, 1)


def test_activity_does_not_go_through_a_carry_that_stays_constant():
    def f(eta):
        def step(carry, _):
            a, b = carry
            return (a * eta, b + 1), gradient(b)

        return jax.lax.scan(step, (X, X), None, length=4)

    found, total = activity(f, X, differentiated=True)
    assert (len(found.pullbacks), total, len(found.loops)) == (0, 1, 1)


def test_activity_comes_from_scanned_inputs():
    def f(eta):
        return jax.lax.scan(lambda c, a: (c, gradient(a + X)), X, eta)

    assert active_pullbacks(f) == (1, 1)


def test_activity_leaves_a_loop_in_the_right_result():
    def f(eta):
        (_, one), two = jax.lax.scan(lambda c, a: ((a, c[1]), a * X), (X[0], X), eta)
        return gradient(one), gradient(two[0])

    assert active_pullbacks(f) == (1, 2)


def test_activity_goes_through_while_loops():
    def f(eta):
        def body(carry):
            i, a, b = carry
            return i + 1, b + gradient(a), eta

        return jax.lax.while_loop(lambda carry: carry[0] < eta.sum(), body, (0, X, X))

    assert active_pullbacks(f) == (1, 1)


def test_the_condition_of_a_while_loop_has_no_derivative():
    def f(eta):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < jnp.sum(eta), gradient, X)

    assert active_pullbacks(f) == (0, 1)


def test_activity_joins_the_branches_of_a_cond():
    def f(eta):
        chosen = jax.lax.cond(eta[0] > 0, lambda: X, lambda: eta)
        return gradient(chosen)

    assert active_pullbacks(f) == (1, 1)


def test_the_predicate_of_a_cond_has_no_derivative():
    def f(eta):
        return gradient(jax.lax.cond(eta[0] > 0, lambda: X, lambda: 2 * X))

    assert active_pullbacks(f) == (0, 1)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
def test_activity_goes_through_wrappers(wrap):
    assert active_pullbacks(wrap(gradient)) == (1, 1)

    def stopped(eta):
        return wrap(lambda a, b: (a, gradient(b)))(eta, X)

    assert active_pullbacks(stopped) == (0, 1)


def test_loops_are_active_where_their_inputs_are():
    def f(eta):
        by_eta = jax.lax.scan(lambda c, _: (c * eta, None), X, None, length=2)[0]
        return by_eta, jax.lax.scan(lambda c, _: (c * 2, None), X, None, length=2)[0]

    found, _ = activity(f, X, differentiated=True)
    assert len(found.loops) == 1
    assert not activity(f, X, differentiated=False)[0].loops


def test_a_nested_loop_is_active_with_the_one_around_it():
    def f(eta):
        def inner(c):
            return jax.lax.scan(lambda d, _: (d * 2, None), c, None, length=2)[0]

        return jax.lax.scan(lambda c, a: (inner(c) * a, None), X, eta)[0]

    assert len(activity(f, X, differentiated=True)[0].loops) == 2


def test_values_are_active_where_they_depend_on_an_active_one():
    def f(eta):
        def body(carry, _):
            theta, count = carry
            return (jax.jit(lambda t: t * 2 + X)(theta), count + 1), jnp.sum(X) * count

        return jax.lax.scan(body, (eta, 0.0), None, length=2)

    module = import_jaxpr(captures(f, X).jaxpr, differentiated=True)
    active = find_activity(main_function(module)).values
    found = [op for op in module.walk() if set(op.results) & active]
    assert sorted(op.eqn.primitive.name for op in found) == ["add", "jit", "mul", "scan"]


def test_a_loop_that_no_cotangent_comes_back_to_is_inactive():
    """The first steps of a truncated loop: they depend on eta, and nothing of them is used."""

    def run(theta, eta, steps):
        def step(theta, _):
            return theta - eta * jax.grad(loss)(theta, eta), None

        return jax.lax.scan(step, theta, length=steps)[0]

    def truncated(eta):
        return jnp.sum(run(jax.lax.stop_gradient(run(X, eta, 3)), eta, 2))

    found, _ = activity(truncated, X, differentiated=True)
    assert [op.length for op in found.loops] == [2]


def test_a_derivative_differentiates_its_function_whatever_comes_of_it():
    """The loop inside stays active though nobody takes the cotangent of the derivative."""

    def looped(eta):
        return jnp.sum(jax.lax.scan(lambda c, _: (c * eta, None), X, None, length=2)[0] ** 2)

    def f(eta):
        return jnp.sum(eta * jax.lax.stop_gradient(jax.grad(looped)(eta)))

    assert activity(f, X, differentiated=True)[0].loops
