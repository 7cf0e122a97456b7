"""What is known of signs: where a root or a logarithm has a finite derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from mixflow.compiler.rules.positivity import Positivity, Sign

X = jnp.ones((2, 3))

SIGNS: dict[str, tuple[Callable[[Any], Any], Sign]] = {
    "an argument": (lambda x: x + 0.0, Sign.ANY),
    "exp": (jnp.exp, Sign.POSITIVE),
    "a square": (jnp.square, Sign.NONNEGATIVE),
    "an even power": (lambda x: x**2, Sign.NONNEGATIVE),
    "an odd power": (lambda x: x**3, Sign.ANY),
    "times itself": (lambda x: x * x, Sign.NONNEGATIVE),
    "a sum of entries": (lambda x: jnp.sum(jnp.exp(x)), Sign.POSITIVE),
    "other shapes": (lambda x: jnp.exp(x).T.reshape(-1)[1:3], Sign.POSITIVE),
    "entries by index": (lambda x: jnp.exp(x)[jnp.array([0, 1])], Sign.POSITIVE),
    "plus something positive": (lambda x: x**2 + 1.0, Sign.POSITIVE),
    "plus anything": (lambda x: x + 1.0, Sign.ANY),
    "a root": (lambda x: jnp.sqrt(x**2 + 1.0), Sign.POSITIVE),
    "a quotient": (lambda x: x**2 / jnp.exp(x), Sign.NONNEGATIVE),
    "the larger": (lambda x: jnp.maximum(x, 0.1), Sign.POSITIVE),
    "one of two": (lambda x: lax.select(x > 0, x**2, jnp.exp(x)), Sign.NONNEGATIVE),
}


@pytest.mark.parametrize("name", SIGNS)
def test_the_sign_of_all_entries(name: str) -> None:
    f, sign = SIGNS[name]
    assert Positivity().program(jax.make_jaxpr(f)(X).jaxpr, [Sign.ANY]) == [sign]


@pytest.mark.parametrize(
    ("f", "is_regular"),
    [
        (lambda x: jnp.sqrt(jnp.sum(jnp.exp(x))), True),
        (lambda x: jnp.log(1.0 + x**2), True),
        (lambda x: x / (0.5 + x**2), True),
        (lambda x: jnp.sqrt(x**2), False),
        (lambda x: 1.0 / x, False),
    ],
)
def test_where_a_derivative_is_finite(f: Callable[[Any], Any], is_regular: bool) -> None:
    walk, jaxpr = Positivity(), jax.make_jaxpr(f)(X).jaxpr
    walk.program(jaxpr, [Sign.ANY])
    singular = {id(eqn) for eqn in jaxpr.eqns if eqn.primitive.name in ("sqrt", "log", "div")}
    assert (walk.regular == singular) is is_regular
