"""Which values are saved for tangents that are computed again, and that results stay."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_close

from mixflow.compiler.derivative.tangents_again import run_tangents_again
from mixflow.compiler.jaxprs.cuts import smallest_cut
from mixflow.compiler.jaxprs.equations import variables
from mixflow.compiler.jaxprs.sizes import array_bytes

X = jnp.linspace(0.2, 1.4, 6)


def random_jaxpr(seed: int) -> Any:
    """Some arrays of different sizes, each computed from one or two of those before it."""
    rng = np.random.default_rng(seed)

    def function(*inputs: Any) -> Any:
        values = list(inputs)
        for _ in range(8):
            first, second = (values[rng.integers(len(values))] for _ in range(2))
            short = min(len(first), len(second), int(rng.integers(1, 4)))
            values.append(first[:short] * second[:short] if rng.integers(2) else jnp.sin(first))
        return values[len(inputs) :]

    return jax.make_jaxpr(function)(jnp.ones(3), jnp.ones(2)).jaxpr


def is_enough(eqns: list[Any], saved: set[Any], needed: list[Any]) -> bool:
    """Whether the needed values follow from the saved ones."""
    known = set(saved)
    for eqn in eqns:
        if known.issuperset(variables(eqn.invars)):
            known.update(eqn.outvars)
    return known.issuperset(needed)


def total(values: Any) -> int:
    return sum(array_bytes(var.aval) for var in values)


@pytest.mark.parametrize("seed", range(12))
def test_no_set_of_fewer_bytes_is_enough(seed: int) -> None:
    jaxpr = random_jaxpr(seed)
    rng = np.random.default_rng(seed)
    needed = [jaxpr.outvars[place] for place in rng.choice(len(jaxpr.outvars), 3, replace=False)]
    found = smallest_cut(jaxpr.eqns, jaxpr.invars, needed)
    values = [*jaxpr.invars, *(var for eqn in jaxpr.eqns for var in eqn.outvars)]
    sets = itertools.chain.from_iterable(
        itertools.combinations(values, count) for count in range(4)
    )
    least = min(total(some) for some in sets if is_enough(jaxpr.eqns, set(some), needed))
    assert is_enough(jaxpr.eqns, found, needed)
    assert total(found) == least


def test_what_follows_from_nothing_needs_no_saving() -> None:
    jaxpr = jax.make_jaxpr(lambda x: (x, jnp.arange(6.0) + 1.0))(X).jaxpr
    assert smallest_cut(jaxpr.eqns, jaxpr.invars, [jaxpr.outvars[1]]) == set()


def pushed_again(function: Any, x: Any, x_dot: Any) -> Any:
    """The pushforward of a function, with tangents that are computed again."""
    push = jax.make_jaxpr(lambda x, x_dot: jax.jvp(function, (x,), (x_dot,)))(x, x_dot)
    return run_tangents_again(push, [x], [], [x_dot])


@pytest.mark.parametrize(
    "function",
    [
        jnp.tanh,
        lambda x: jax.nn.softmax(jnp.where(x > 0.5, x, -jnp.inf)),
        lambda x: x / (1.0 + jnp.exp(-x)) + jnp.cumsum(x**3),
        lambda x: 2.0 * x[::-1],
        jnp.zeros_like,
    ],
    ids=["tanh", "softmax", "several", "linear", "zero"],
)
def test_the_same_numbers(function: Any) -> None:
    def plain(x: Any, x_dot: Any) -> Any:
        return list(jax.jvp(function, (x,), (x_dot,)))

    def again(x: Any, x_dot: Any) -> Any:
        return pushed_again(function, x, x_dot)

    for derive in (lambda f: f, lambda f: jax.jacrev(f, (0, 1)), lambda f: jax.jacfwd(f, (0, 1))):
        assert_close(derive(again)(X, X[::-1]), derive(plain)(X, X[::-1]))


def test_fewer_arrays_are_saved() -> None:
    def tangent(x: Any, x_dot: Any) -> Any:
        return pushed_again(jnp.tanh, x, x_dot)[1]

    def plain(x: Any, x_dot: Any) -> Any:
        return jax.jvp(jnp.tanh, (x,), (x_dot,))[1]

    assert residuals(tangent) < residuals(plain)


def test_of_equal_sets_that_with_the_results_is_taken() -> None:
    def function(x: Any) -> Any:
        sine = jax.lax.sin(x)
        return sine, jax.lax.cos(sine)

    jaxpr = jax.make_jaxpr(function)(X).jaxpr
    sine, cosine = jaxpr.outvars
    assert smallest_cut(jaxpr.eqns, jaxpr.invars, [cosine], {sine}) == {sine}
    assert smallest_cut(jaxpr.eqns, jaxpr.invars, [cosine]) == {cosine}


def residuals(function: Any) -> int:
    """The number of arrays that the pullback of a function keeps."""
    pullback = jax.vjp(function, X, X[::-1])[1]
    return len({id(leaf) for leaf in jax.tree.leaves(pullback) if leaf.shape})
