"""What the second run of a checkpoint waits for: as little as keeps it apart from the first."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_close, equations, unflagged

from mixflow.compiler.barriers import waiting
from mixflow.compiler.barriers.waiting import wait_for_less
from mixflow.compiler.jaxprs.equations import rewrite_equations

W, X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), jnp.linspace(0.0, 2.0, 20).reshape(5, 4)


def second_runs(closed: Any) -> list[Any]:
    """The checkpoints that are rerun, which is where barriers stand."""
    found = [eqn for eqn in equations(closed.jaxpr) if "prevent_cse" in eqn.params]
    return [eqn for eqn in found if eqn.params["differentiated"]]


def held_shapes(eqn: Any) -> list[tuple[int, ...]]:
    waits = zip(eqn.invars, eqn.params["prevent_cse"], strict=True)
    return [atom.aval.shape for atom, waiting in waits if waiting]


def pushed_pullback(f: Any, barriers: Any) -> Any:
    """The pushforward of the pullback of a checkpoint, parameters and data moving."""

    def pullback(w: Any, x: Any) -> Any:
        y, back = jax.vjp(jax.checkpoint(f, prevent_cse=barriers), w, x)
        return back(jnp.cos(y))

    return lambda w, x: jax.jvp(pullback, (w, x), (2.0 * w, 3.0 * x))


STARTS = pytest.mark.parametrize("start", [jnp.asarray, jnp.sin], ids=["data", "computed"])


@unflagged
@STARTS
def test_the_tangent_of_a_parameter_does_not_wait_where_the_parameter_does_not(start: Any) -> None:
    f = pushed_pullback(lambda w, x: jnp.tanh(start(x) @ w), (False, True))
    before = jax.make_jaxpr(f)(W, X)
    after = rewrite_equations(before, wait_for_less)
    (old,), (new,) = second_runs(before), second_runs(after)
    # The data, the cotangent, and both of their tangents keep their barriers.
    assert sorted(held_shapes(old)) == [(4, 3), (5, 3), (5, 3), (5, 4), (5, 4)]
    assert sorted(held_shapes(new)) == [(5, 3), (5, 3), (5, 4), (5, 4)]
    results = jax.core.eval_jaxpr(after.jaxpr, after.consts, W, X)
    assert_close(results, jax.tree.leaves(f(W, X)))


@unflagged
def test_what_a_tangent_alone_is_computed_from_waits() -> None:
    f = pushed_pullback(lambda w, x: jnp.tanh(x @ jnp.exp(w)), (False, True))
    closed = rewrite_equations(jax.make_jaxpr(f)(W, X), wait_for_less)
    (eqn,) = second_runs(closed)
    # Its product with exp(w), which nothing holds back, would be shared between the runs.
    assert (4, 3) in held_shapes(eqn)


@unflagged
def test_other_layouts_of_it_may_be_shared() -> None:
    f = pushed_pullback(lambda w, x: jnp.tanh(x @ w.reshape(3, 4).T), (False, True))
    closed = rewrite_equations(jax.make_jaxpr(f)(W, X), wait_for_less)
    (eqn,) = second_runs(closed)
    assert (4, 3) not in held_shapes(eqn)


@unflagged
@STARTS
def test_a_cotangent_of_a_parameters_shape_waits(start: Any) -> None:
    square = jnp.eye(4)
    f = pushed_pullback(lambda w, x: jnp.tanh(start(x) @ w), (False, True))
    (eqn,) = second_runs(rewrite_equations(jax.make_jaxpr(f)(square, square), wait_for_less))
    waits = eqn.params["prevent_cse"]
    assert waits.count(False) == 2  # w, and one tangent


def test_barriers_that_are_all_or_none_stay() -> None:
    for barriers in (True, False):
        closed = jax.make_jaxpr(pushed_pullback(lambda w, x: jnp.tanh(x @ w), barriers))(W, X)
        assert str(rewrite_equations(closed, wait_for_less)) == str(closed)


def needed(f: Any, waits: tuple[bool, ...]) -> tuple[bool, ...]:
    """The barriers that are left of a body whose inputs are all square."""
    body = jax.make_jaxpr(f)(*[jnp.ones((3, 3))] * len(waits)).jaxpr
    return waiting._needed(body, waits)


def test_a_product_with_a_parameter_waits_by_the_tangent() -> None:
    """Nothing else of it does: XLA would take it from the first run."""
    assert needed(lambda w, v, w_dot: w_dot * v + jnp.sin(w), (False, False, True))[2]


def test_one_input_is_let_go_for_each_parameter_that_does_not_wait() -> None:
    """The others that look like a tangent may be cotangents."""

    def body(w: Any, x: Any, y: Any, a: Any) -> Any:
        return jnp.sin(w @ a) + x @ a + y @ a

    assert needed(body, (False, True, True, True)) == (False, False, True, True)
