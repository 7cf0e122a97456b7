"""forward-over-reverse differentiates nothing twice that plain JAX differentiates once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from checking import ir, run_and_measure
from jax import lax
from support import assert_close

import mixflow

FOR = "canonicalize,cse,fuse-value-and-pullback,canonicalize,forward-over-reverse"
BOTH = f"{FOR},reverse-over-forward"
ETA, THETA = jnp.array([0.0, 0.7, 1.1]), jnp.array([0.2, -0.4, 0.9])


def solve(a: Any) -> Any:
    """Iterates until it settles: it has no reverse mode."""
    start = (a, a + 1.0)
    return lax.while_loop(
        lambda s: jnp.abs(s[0] - s[1]) > 1e-9, lambda s: (jnp.cos(a * s[0]), s[0]), start
    )[0]


@jax.custom_jvp
def quantised(x: Any) -> Any:
    return jnp.round(x * 2) / 2


quantised.defjvp(lambda primals, tangents: (quantised(*primals), tangents[0] * 3.0))

TERMS: dict[str, Any] = {
    "square root at 0": lambda eta: jnp.sum(jnp.sqrt(eta)),
    "norm at 0": lambda eta: jnp.linalg.norm(eta[:1]),
    "x log x at 0": lambda eta: jnp.sum(eta * jnp.log(eta)),
    "power at 0": lambda eta: jnp.sum(eta**0.3),
    "in a jit": jax.jit(lambda eta: jnp.sum(jnp.sqrt(eta))),
    "in a vmap": lambda eta: jnp.sum(jax.vmap(jnp.sqrt)(eta)),
    "until it settles": lambda eta: solve(eta[1]),
    "an untrue rule": lambda eta: jnp.sum(quantised(eta)),
}
PLACES = ("added", "auxiliary", "in a cond", "in a checkpoint")


def meta(term: Any, place: str) -> Any:
    def loss(theta: Any, eta: Any) -> Any:
        fit = jnp.sum((eta + 0.5) * jnp.tanh(theta) ** 2)
        match place:
            case "added":
                return fit + term(eta)
            case "auxiliary":
                return fit + 2 * term(eta), theta
            case "in a cond":
                return fit + lax.cond(theta[0] > 9, lambda: term(eta), lambda: 2 * term(eta))
            case _:
                return jax.checkpoint(lambda theta: fit * jnp.sum(theta) + term(eta))(theta)

    def step(theta: Any, eta: Any) -> Any:
        gradient = jax.grad(loss, has_aux=place == "auxiliary")(theta, eta)
        return theta - 0.1 * (gradient[0] if place == "auxiliary" else gradient)

    def outer(eta: Any) -> Any:
        return jnp.sum(lax.scan(lambda t, _: (step(t, eta), None), THETA, length=2)[0] ** 2)

    return outer


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("term", TERMS)
def test_terms_of_the_outer_variable_alone(term: str, place: str) -> None:
    f = jax.grad(meta(TERMS[term], place))
    expected = jax.jit(f)(ETA)
    for passes in (FOR, BOTH):
        assert_close(mixflow.compile(f, passes=passes)(ETA), expected)


@pytest.mark.parametrize("term", ["square root at 0", "in a jit", "an untrue rule"])
def test_they_are_taken_out(term: str) -> None:
    """The symmetric rule is allowed then: neither a decline nor the other rule."""
    text = ir(BOTH, jax.grad(meta(TERMS[term], "added")), ETA)
    assert text.count("[symmetric rule]") == 1
    assert "transposed rule" not in text


@pytest.mark.parametrize("term", ["until it settles"])
def test_what_cannot_be_taken_out_gets_the_transposed_rule(term: str) -> None:
    text = ir(BOTH, jax.grad(meta(TERMS[term], "added")), ETA)
    assert "symmetric rule" not in text
    assert text.count("[transposed rule]") == 1


def test_what_is_harmless_stays() -> None:
    text = ir(FOR, jax.grad(meta(lambda eta: jnp.sum(jnp.exp(eta)), "added")), ETA)
    before = ir(FOR.replace(",forward-over-reverse", ""), jax.grad(meta(jnp.sum, "added")), ETA)
    assert text.count("mixflow.vjp") == before.count("mixflow.vjp")
    first, _, rest = text.partition("[symmetric rule]")
    assert "exp(" in rest
    assert "exp(" not in first


@pytest.mark.parametrize(
    ("power", "rule"), [(2, "symmetric"), (3, "symmetric"), (-2, "transposed")]
)
def test_a_power_is_harmless_unless_it_divides(power: int, rule: str) -> None:
    """`mean(x**2)` of a norm in a first layer is of the outer variable alone."""
    f = jax.grad(meta(lambda eta: jnp.sum((eta + 1.0) ** power), "in a checkpoint"))
    assert ir(BOTH, f, ETA).count(f"[{rule} rule]") == 1
    assert_close(mixflow.compile(f, passes=BOTH)(ETA), jax.jit(f)(ETA))


@pytest.mark.parametrize("power", [1.5, 2.0])
def test_an_infinite_second_derivative_of_auxiliary_data(power: float) -> None:
    """At 0, |x| ** 1.5 has a first derivative and no second one: plain JAX takes the first."""

    def outer(theta: Any, eta: Any) -> Any:
        def inner(theta: Any) -> Any:
            return jnp.sum(eta * theta**2), jnp.sum(eta * jnp.abs(theta) ** power)

        gradient, aux = jax.grad(inner, has_aux=True)(theta)
        return jnp.sum((theta - 0.1 * gradient) ** 2) + aux

    f = jax.grad(outer)
    args = jnp.array([0.0, 1.0, 2.0]), jnp.array([0.3, -0.7, 1.1])
    expected = jax.jit(f)(*args)
    for passes in (FOR, BOTH):
        assert_close(mixflow.compile(f, passes=passes)(*args), expected)


def test_a_rule_that_the_point_does_not_reach_costs_no_memory() -> None:
    def outer(quantise: Any) -> Any:
        def loss(w: Any, eta: Any, x: Any) -> Any:
            x = quantise(x * eta)
            for _ in range(4):
                x = jnp.tanh(x @ w)
            return jnp.mean((x - 0.3) ** 2)

        def meta(eta: Any, w: Any, x: Any) -> Any:
            step = lambda w, _: (w - 0.5 * jax.grad(loss)(w, eta, x), None)  # noqa: E731
            return loss(lax.scan(step, w, length=3)[0], eta, x)

        return jax.value_and_grad(meta)

    args = jnp.linspace(1, 4, 8), jnp.eye(8), jax.random.normal(jax.random.key(0), (256, 8))
    found = mixflow.compile(outer(quantised))
    assert "forward-over-reverse" in found.optimised(*args).passes
    result, after = run_and_measure(found, *args)
    expected, _ = run_and_measure(jax.jit(outer(quantised)), *args)
    _, smooth = run_and_measure(mixflow.compile(outer(jnp.sin)), *args)
    assert_close(result, expected)
    assert after < 1.1 * smooth
