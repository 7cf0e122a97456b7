"""One key for programs that do the same: what is found out about one of them holds for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun
from support import captures

from mixflow.compiler.jaxprs.structure import structure_of
from mixflow.planner.pipeline import optimise, parse_passes

X = jnp.linspace(0.1, 1.0, 4)
TABLE, SAME_TABLE = np.arange(4.0), np.arange(4.0)


def keys_of(*functions: Callable[..., Any]) -> list[Any]:
    """The keys of some functions, traced at one line."""
    return [structure_of(jax.make_jaxpr(f)(X)) for f in functions]


def times(number: Any) -> Callable[[Any], Any]:
    return lambda x: jnp.tanh(x * number)


def test_unrolled_copies_have_one_key():
    assert len(set(keys_of(*(times(0.5) for _ in range(3))))) == 1


def test_programs_inside_count():
    looped = [
        lambda x, n=n: jax.lax.scan(lambda c, _: (c * n, None), x, length=3) for n in (2, 2, 3)
    ]
    first, second, third = keys_of(*looped)
    assert first == second != third


@pytest.mark.parametrize(
    "other",
    [
        lambda x: jnp.tanh(0.0 * x),
        times(-0.0),
        times(jnp.float32(0.0)),
        times(np.zeros(4)),
        lambda x: jnp.tanh(x * 0.0),
    ],
    ids=["operands swapped", "minus zero", "strong type", "an array", "another line"],
)
def test_what_tells_programs_apart(other: Callable[[Any], Any]):
    first, second = keys_of(times(0.0), other)
    assert first != second


def test_which_value_is_read_counts():
    def read(place: int) -> Callable[..., Any]:
        return lambda x, y, z: jnp.sin((x, y, z, x + y, x * y, x - y)[place])

    keys = [structure_of(jax.make_jaxpr(read(place))(X, X, X)) for place in range(6)]
    assert len(set(keys)) == 6


def test_arrays_are_one_object_or_another():
    first, second, third = keys_of(times(TABLE), times(TABLE), times(SAME_TABLE))
    assert first == second != third


def unrolled(steps: int, activation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def meta(eta: Any) -> Any:
        theta = X
        for _ in range(steps):
            theta = theta - 0.1 * jax.grad(lambda t: jnp.sum(activation(t * eta)))(theta)
        return jnp.sum(theta**2)

    return jax.grad(meta)


def spelled_for(meta: Callable[[Any], Any]) -> list[Any]:
    """What is remembered of each inner gradient."""
    passes = parse_passes("canonicalize,cse,forward-over-reverse")
    program = optimise(captures(meta, X), passes, differentiated=False).jaxpr
    (outer,) = [eqn for eqn in program.eqns if "function" in eqn.params]
    inside = outer.params["function"].jaxpr.eqns
    return [eqn.params["function"].spelled for eqn in inside if "function" in eqn.params]


def test_equal_gradients_are_spelled_out_once():
    found = spelled_for(unrolled(5, jnp.tanh))
    assert len(found) == 5
    assert len(set(map(id, found))) == 1


def test_a_function_with_an_unknown_rule_is_spelled_out_by_itself():
    @jax.custom_jvp
    def activation(x: Any) -> Any:
        return jnp.tanh(x)

    activation.defjvp(lambda x, dx: (jnp.tanh(x[0]), dx[0]))
    found = spelled_for(unrolled(3, activation))
    assert len(set(map(id, found))) == 3


def test_functions_that_are_spelled_out_once_have_their_own_values():
    meta = unrolled(4, jnp.tanh)
    passes = parse_passes("canonicalize,cse,forward-over-reverse")
    program = optimise(captures(meta, X), passes, differentiated=False).jaxpr
    (found,) = jax.jit(jaxpr_as_fun(program))(X)
    np.testing.assert_allclose(found, meta(X), rtol=1e-12)
