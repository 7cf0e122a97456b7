"""Gradients are weakly typed where plain JAX's are, and that is found out without tracing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import captures

import mixflow
from mixflow.compiler.derivative import vjp_primitive

STRONG = jnp.ones(3, jnp.float32)
HALF = jnp.ones(3, jnp.bfloat16)


def scanned(x: Any) -> Any:
    return jnp.sum(jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0] * STRONG)


def carried(x: Any) -> Any:
    return jnp.sum(jax.lax.scan(lambda c, _: (c * x, None), STRONG, None, 3)[0])


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
