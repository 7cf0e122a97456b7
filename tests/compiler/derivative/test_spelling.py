"""Reverse passes: there for what JAX can differentiate, left out for what it cannot."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixflow.compiler.derivative import spelling
from mixflow.compiler.derivative.spelling import with_reverse_pass

X = jnp.array([0.5, -1.5, 2.0])


def doubled_until_large(x):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x * 2, x)


def on_the_host(x):
    return jax.pure_callback(np.sin, x, x)


def without_a_rule(x):
    return jax.lax.linalg.schur(jnp.outer(x, x))[0]


def without_a_transposed_solve(x):
    return jax.lax.custom_linear_solve(lambda y: 2 * y, x, lambda _, b: b / 2)


def traced(f: Any) -> Any:
    return jax.make_jaxpr(f)(X)


@pytest.mark.parametrize(
    "f",
    [doubled_until_large, on_the_host, without_a_rule, without_a_transposed_solve],
    ids=lambda f: f.__name__,
)
def test_what_has_no_reverse_pass_stays_as_it_is(f):
    closed = traced(f)
    assert with_reverse_pass(closed) is closed


def test_a_reverse_pass_is_the_gradient_of_the_sum_beside_the_results():
    both = with_reverse_pass(traced(lambda x: (jnp.sin(x), jnp.argmax(x))))
    value, place, gradient = jax.core.eval_jaxpr(both.jaxpr, both.consts, X)
    np.testing.assert_allclose(value, jnp.sin(X))
    np.testing.assert_allclose(gradient, jnp.cos(X))
    assert place == 2


def test_a_bug_of_ours_is_not_taken_for_a_missing_rule(monkeypatch):
    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(spelling, "partition", broken)
    with pytest.raises(TypeError, match="a bug"):
        with_reverse_pass(traced(jnp.sin))
