"""Gradients are weakly typed where plain JAX's are, and that is found out without tracing them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import captures

import mixflow
from mixflow.compiler.derivative import vjp_primitive, weak_types

STRONG = jnp.ones(3, jnp.float32)
HALF = jnp.ones(3, jnp.bfloat16)


def scanned(x: Any) -> Any:
    return jnp.sum(jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0] * STRONG)


def carried(x: Any) -> Any:
    return jnp.sum(jax.lax.scan(lambda c, _: (c * x, None), STRONG, None, 3)[0])


def trained(x: Any) -> Any:
    """A learning rate that a loop reads, beside carried values whose end nobody reads."""

    def step(carry: Any, _: Any) -> Any:
        theta, mean = carry
        mean = 0.9 * mean + jnp.sin(theta)
        return (theta - jnp.exp(x) * mean, mean), None

    return jnp.sum(jax.lax.scan(step, (STRONG, STRONG), None, 3)[0][0])


def stopped_in_a_loop(x: Any) -> Any:
    return trained(x) + trained(jax.lax.stop_gradient(x)) + stopped_inside(x)


def stopped_inside(x: Any) -> Any:
    def step(c: Any, _: Any) -> Any:
        return c * jax.lax.stop_gradient(x * STRONG), None

    return jnp.sum(jax.lax.scan(step, STRONG, None, 3)[0])


def called(x: Any, *, wrap: Callable[..., Any]) -> Any:
    """A rate that a step reads, in a call that gives a strongly and a weakly typed value."""

    def step(x: Any, theta: Any) -> Any:
        rate = jnp.exp(x)
        return theta - rate * jnp.sin(theta), theta * 2.0 - jnp.sum(rate)

    theta, other = wrap(step)(x, STRONG)
    return jnp.sum(theta) + jnp.sum(wrap(step)(x, other)[0])


def gives_a_rate(x: Any, *, wrap: Callable[..., Any]) -> Any:
    return jnp.sum(wrap(lambda x: (jnp.exp(x), x * STRONG))(x)[0] * STRONG)


def summed(x: Any) -> Any:
    """A constant of a loop that adds it to weakly typed values alone."""
    return jnp.sum(jax.lax.scan(lambda c, _: (c + jnp.sum(x), None), 0.5, None, 3)[0])


def in_two_loops(x: Any) -> Any:
    return jax.lax.scan(lambda c, _: (c * carried(x), None), 1.0, None, 2)[0] * STRONG[0]


def weak_slices(x: Any) -> Any:
    """What a loop makes of a constant, stacked up and weakly typed still."""
    made = jax.lax.scan(lambda c, s: (c * s, jnp.sin(x)), STRONG, STRONG)[1]
    return jnp.sum(jnp.sum(made) * STRONG)


def slices(x: Any) -> Any:
    return jnp.sum(jax.lax.scan(lambda c, s: (c * s, s), STRONG, jnp.stack([x, x]))[0])


def branched(x: Any) -> Any:
    return jnp.sum(jax.lax.cond(STRONG[0] > 0, lambda x: x * 2.0, lambda x: x, x) * STRONG)


def part(x: Any) -> Any:
    """Through this, other than through a product, JAX's gradient is strongly typed."""
    return jnp.sum(jnp.broadcast_to(x, (3,))[1] * STRONG)


LOSSES: dict[str, Callable[[Any], Any]] = {
    "a product": lambda x: jnp.sum(x * STRONG),
    "weak to the end": lambda x: jnp.sum(jnp.sin(x)),
    "both ways": lambda x: jnp.sum(x * STRONG) + jnp.sum(jnp.sin(x)),
    "a part": part,
    "powers": lambda x: jnp.sum((x**2 + x**3) * STRONG),
    "an inner product": lambda x: jnp.dot(jnp.broadcast_to(x, (3,)), STRONG),
    "half precision": lambda x: jnp.sum(jnp.asarray(x).astype(jnp.bfloat16) * HALF),
    "not used": lambda x: jnp.sum(STRONG),
    "stopped": lambda x: jnp.sum(jax.lax.stop_gradient(x) * STRONG),
    "stopped later": lambda x: jnp.sum(x * STRONG) + jax.lax.stop_gradient(part(x)),
    "used by what nobody reads": lambda x: (part(x), jnp.sum(x * STRONG))[1],
    "a jit": lambda x: jnp.sum(jax.jit(jnp.sin)(x) * STRONG),
    "a checkpoint": lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x) * STRONG)(x)),
    "a gradient": lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(x)))(x) * STRONG),
    "a rule": lambda x: jnp.sum(jax.nn.relu(x) * STRONG),
    "a scan": scanned,
    "a scan that carries": carried,
    "a rate that a scan reads": trained,
    "a step in a jit": partial(called, wrap=jax.jit),
    "a step in a checkpoint": partial(called, wrap=jax.checkpoint),
    "a rate that a jit gives": partial(gives_a_rate, wrap=jax.jit),
    "a rate that a checkpoint gives": partial(gives_a_rate, wrap=jax.checkpoint),
    "a rate that is stopped": stopped_in_a_loop,
    "a scan that stops": stopped_inside,
    "a scan that adds": summed,
    "a scan in a scan": in_two_loops,
    "what a scan stacks up": weak_slices,
    "slices of a scan": slices,
    "a cond": branched,
}


@pytest.mark.parametrize("point", [1.0, (3,)], ids=["a number", "an array"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_types_are_those_of_plain_jax(loss: Callable[[Any], Any], point: Any) -> None:
    with jax.enable_x64(False):
        x = jnp.full(point, 0.5) if isinstance(point, tuple) else point
        plain = jax.eval_shape(jax.value_and_grad(loss), x)
        ours = jax.eval_shape(mixflow.compile(jax.value_and_grad(loss)), x)
    assert [(one.dtype, one.weak_type) for one in ours] == [
        (one.dtype, one.weak_type) for one in plain
    ]


def test_of_a_point_in_two_parts() -> None:
    """One of them weakly typed, with one result that is."""

    def gradient(x: Any, y: Any) -> Any:
        return jax.grad(lambda x, y: jnp.sum(jnp.sin(x)) + 0.0 * y[0], argnums=(0, 1))(x, y)

    with jax.enable_x64(False):
        args = jnp.full(3, 0.5), jnp.ones((), jnp.float32)[None]
        ours, plain = (jax.eval_shape(f, *args) for f in (mixflow.compile(gradient), gradient))
    assert [one.weak_type for one in ours] == [one.weak_type for one in plain]


def test_of_a_loop_little_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    pulled_back = weak_types._pulled_back

    def watched(point: Any, part: Any, pulled: Any) -> Any:
        traced.extend(part.eqns)
        return pulled_back(point, part, pulled)

    monkeypatch.setattr(weak_types, "_pulled_back", watched)
    with jax.enable_x64(False):
        captures(jax.value_and_grad(trained), jnp.full((), 0.1))
    (loop,) = [eqn for eqn in traced if eqn.primitive.name == "scan"]
    assert {eqn.primitive.name for eqn in loop.params["jaxpr"].eqns} == {
        "exp",
        "convert_element_type",
    }


def test_a_capture_traces_no_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(theta: Any, x: Any) -> Any:
        return jnp.mean((jnp.tanh(x * theta) - 1) ** 2)

    def meta_loss(rates: Any, theta: Any) -> Any:
        for rate in rates:
            theta = theta - rate * jax.grad(loss)(theta, STRONG)
        return loss(theta, STRONG)

    def traced(*args: Any) -> Any:
        raise AssertionError(f"a derivative was traced: {args[0]}")

    monkeypatch.setattr(vjp_primitive, "traced_definition", traced)
    with jax.enable_x64(False):
        captures(jax.value_and_grad(meta_loss), jnp.full(4, 0.1), STRONG)
