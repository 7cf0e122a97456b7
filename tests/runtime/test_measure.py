"""Programs that are run with example arguments: what is static is no argument of theirs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import mixflow
from mixflow.runtime.target import measured_target

X = jnp.array([0.5, -1.5, 2.0])


def meta(eta: Any, steps: Any, *, rate: Any = 0.1) -> Any:
    def step(theta: Any, _: Any) -> Any:
        return theta - rate * jax.grad(lambda t: jnp.sum(jnp.tanh(t * eta) ** 2))(theta), None

    return jnp.sum(jax.lax.scan(step, jnp.ones_like(eta), length=steps)[0] ** 2)


def test_a_timed_report_of_a_function_with_static_arguments() -> None:
    function = mixflow.compile(meta, static_argnums=1, static_argnames=("steps", "rate"))
    report = function.report(jax.ShapeDtypeStruct(X.shape, X.dtype), 3, rate=0.2, run=True)
    assert report.target == "value_and_grad in the first argument"
    assert all((row.run_s or 0) > 0 for _, row in report.rows)
    assert len(report.rows) == 3


def test_autotune_of_a_function_with_static_arguments() -> None:
    function = mixflow.compile(meta, autotune=True, static_argnames=("steps", "rate"))
    assert jnp.allclose(function(X, steps=3, rate=0.2), meta(X, 3, rate=0.2))


@pytest.mark.parametrize(
    ("fun", "words"),
    [
        (lambda eta: jnp.sum(eta["x"] ** 2), "value_and_grad"),
        (lambda eta: (jnp.sum(eta["x"] ** 2), {"x": jnp.ones(3)}), "value_and_grad"),
        (jax.value_and_grad(lambda eta: jnp.sum(eta["x"] ** 2)), "as written"),
        (jax.grad(lambda eta: jnp.sum(eta["x"] ** 2)), "as written"),
    ],
    ids=["a loss", "with auxiliary data", "its value and gradient", "its gradient"],
)
def test_what_of_a_function_is_measured(fun: Any, words: str) -> None:
    _, target = measured_target(fun, ({"x": jnp.ones(2)},), {}, {})
    assert target.startswith(words)
