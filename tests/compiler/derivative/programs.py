"""The same step written with plain JAX's transformations and with mixflow's explicit forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from support import primitives

import mixflow

ETA = jnp.array([0.3, -0.7, 1.1])
THETA = jnp.array([0.5, 1.5, -0.4])
TANGENT = jnp.array([0.2, -1.0, 0.6])
INDEX = jnp.array([2, 0, 1])


def loss(theta: Any, eta: Any) -> Any:
    return jnp.sum(jnp.tanh(theta * eta) ** 2) + jnp.sum(theta**3 * jnp.cos(eta))


def outputs(theta: Any, eta: Any) -> Any:
    return jnp.tanh(theta * eta), {"sum": jnp.sum(theta**3) * eta[0], "order": jnp.argsort(theta)}


def float_outputs(theta: Any, eta: Any) -> Any:
    values, rest = outputs(theta, eta)
    return values, rest["sum"]


def gradient(ad: Any, theta: Any, eta: Any) -> Any:
    return ad.grad(loss)(theta, eta)


def constants_inactive(ad: Any, theta: Any, eta: Any) -> Any:
    return ad.grad(lambda theta: loss(theta, ETA))(theta * eta)


def point_inactive(ad: Any, theta: Any, eta: Any) -> Any:
    return ad.grad(lambda theta: loss(theta, eta))(THETA) * theta


def only_cotangents_active(ad: Any, theta: Any, eta: Any) -> Any:
    return ad.vjp(lambda theta: jnp.tanh(theta * ETA), THETA)[1](theta * eta)[0]


def value_and_gradient(ad: Any, theta: Any, eta: Any) -> Any:
    value, gradient = ad.value_and_grad(loss)(theta, eta)
    return value * gradient


def both_gradients(ad: Any, theta: Any, eta: Any) -> Any:
    return ad.grad(loss, argnums=(0, 1))(theta, eta)


def several_outputs(ad: Any, theta: Any, eta: Any) -> Any:
    (values, total), pullback = ad.vjp(lambda theta: float_outputs(theta, eta), theta)
    return pullback((values * eta, total**2))[0], values


def called_twice(ad: Any, theta: Any, eta: Any) -> Any:
    (values, total), pullback = ad.vjp(lambda theta: float_outputs(theta, eta), theta)
    return pullback((pullback((values, total))[0], total))[0]


def with_aux(ad: Any, theta: Any, eta: Any) -> Any:
    def f(theta: Any) -> Any:
        hidden = jnp.sin(theta * eta)
        return loss(hidden, eta), {"hidden": hidden, "best": jnp.argmax(hidden)}

    gradient, aux = ad.grad(f, has_aux=True)(theta)
    return gradient * aux["hidden"], aux["hidden"] ** 2


def value_with_aux(ad: Any, theta: Any, eta: Any) -> Any:
    (value, aux), gradient = ad.value_and_grad(
        lambda theta: (loss(theta, eta), theta * eta), has_aux=True
    )(theta)
    return gradient * value + aux


def aux_alone(ad: Any, theta: Any, eta: Any) -> Any:
    """The gradient itself is not used: all that reaches x and c is the auxiliary output."""
    return ad.grad(lambda t: (loss(t, eta), t**2 * eta), has_aux=True)(theta)[1]


def integer_constants(ad: Any, theta: Any, eta: Any) -> Any:
    return ad.grad(lambda theta, index: loss(theta[index], eta * index))(theta, INDEX)


def key_constants(ad: Any, theta: Any, eta: Any) -> Any:
    key = jax.random.key(7)
    return ad.grad(lambda theta, key: loss(theta + jax.random.normal(key, (3,)), eta))(theta, key)


def unused_arguments(ad: Any, theta: Any, eta: Any) -> Any:
    return ad.grad(lambda theta, other: loss(theta, eta), argnums=(0, 1))(theta, eta)


def linear_loss(ad: Any, theta: Any, eta: Any) -> Any:
    return ad.grad(lambda theta: jnp.sum(theta * eta))(theta)


def constant_output(ad: Any, theta: Any, eta: Any) -> Any:
    _, pullback = ad.vjp(lambda theta: (jnp.ones(3), theta * eta), theta)
    return pullback((theta, eta))[0]


def identity(ad: Any, theta: Any, eta: Any) -> Any:
    value, pullback = ad.vjp(lambda theta, eta: (theta, eta), theta, eta)
    return pullback(jax.tree.map(jnp.sin, value))


def nested(ad: Any, theta: Any, eta: Any) -> Any:
    return ad.grad(lambda theta: jnp.sum(ad.grad(loss)(theta, eta) ** 2))(theta)


def with_a_scan_inside(ad: Any, theta: Any, eta: Any) -> Any:
    def deep(theta: Any) -> Any:
        return loss(jax.lax.scan(lambda h, w: (jnp.tanh(h * w), w), theta, eta[:, None])[0], eta)

    return ad.grad(deep)(theta)


PROGRAMS: list[Callable[..., Any]] = [
    gradient,
    constants_inactive,
    point_inactive,
    only_cotangents_active,
    value_and_gradient,
    both_gradients,
    several_outputs,
    called_twice,
    with_aux,
    value_with_aux,
    aux_alone,
    integer_constants,
    key_constants,
    unused_arguments,
    linear_loss,
    constant_output,
    identity,
    nested,
    with_a_scan_inside,
]

FEW = [gradient, value_and_gradient, several_outputs, value_with_aux, integer_constants]
"""For tests whose property is not about the form of the program."""


def plain(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program (theta, eta) ↦ … in plain JAX."""
    return lambda theta, eta: program(jax, theta, eta)


def symbolic(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program (theta, eta) ↦ … with mixflow's explicit forms, which must be in its trace."""

    def run(theta: Any, eta: Any) -> Any:
        return program(mixflow, theta, eta)

    names = primitives(jax.make_jaxpr(run)(THETA, ETA).jaxpr)
    assert names["mixflow_vjp"] > 0 or names["mixflow_primal"] > 0
    return run


def scalar(f: Callable[..., Any]) -> Callable[..., Any]:
    """A number that depends on every output of `f`."""

    def total(*args: Any) -> Any:
        return sum(jnp.sum(jnp.sin(leaf) * leaf) for leaf in jax.tree.leaves(f(*args)))

    return total
