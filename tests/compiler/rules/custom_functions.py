"""Custom rules that are linear maps, true derivatives or not, and rules that only look so."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def by_vjp(forward: Any, backward: Any) -> Any:
    """A custom_vjp of one argument; `forward` gives the value and what `backward` is given."""
    function = jax.custom_vjp(lambda x: forward(x)[0])
    function.defvjp(forward, backward)
    return function


def by_jvp(value: Any, rule: Any) -> Any:
    """A custom_jvp of one argument; `rule` gives the tangent."""
    function = jax.custom_jvp(value)
    function.defjvp(lambda primals, tangents: (function(*primals), rule(primals[0], tangents[0])))
    return function


def idiom(scale: float) -> Any:
    """The documentation's form: the forward rule calls the function itself."""

    @jax.custom_vjp
    def function(x: Any) -> Any:
        return jnp.tanh(x)

    def backward(x: Any, g: Any) -> Any:
        return (scale * jax.vjp(jnp.tanh, x)[1](g)[0],)

    function.defvjp(lambda x: (function(x), x), backward)
    return function


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _power(x: Any, n: int) -> Any:
    return x**n


_power.defvjp(lambda x, n: (x**n, x), lambda n, x, g: (g * n * jnp.cos(x),))


@jax.custom_vjp
def _one_of_two(x: Any, y: Any) -> Any:
    return jnp.sin(x) * y


_one_of_two.defvjp(lambda x, y: (jnp.sin(x) * y, y), lambda y, g: (g * y * 1.5, None))


def _over_a_scan(x: Any, g: Any) -> Any:
    def body(g: Any, _: Any) -> Any:
        return g * jax.nn.sigmoid(x), None

    return (jax.jit(lambda g: lax.scan(body, g, length=2)[0])(g),)


@jax.custom_jvp
def _reversed(x: Any) -> Any:
    return x


_reversed.defjvp(lambda primals, tangents: (_reversed(*primals), -tangents[0]))

WEIGHTS = jnp.linspace(0.5, 1.5, 3)

LINEAR: dict[str, Any] = {
    "true": by_vjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,)),
    "straight through": by_vjp(lambda x: (jnp.round(x * 2) / 2, None), lambda _, g: (g,)),
    "reversed": by_vjp(lambda x: (x, None), lambda _, g: (-0.5 * g,)),
    "idiom": idiom(1.0),
    "idiom, reversed": idiom(-0.5),
    "slope of another": by_vjp(lambda x: (jnp.sign(x), x), lambda x, g: (g * jnp.cos(x),)),
    "of a matrix": by_vjp(lambda x: (x, x), lambda x, g: (g[::-1] * WEIGHTS + jnp.sum(g) * x,)),
    "pullback as residual": by_vjp(lambda x: jax.vjp(jnp.sin, x), lambda pullback, g: pullback(g)),
    "jit and scan": by_vjp(lambda x: (jnp.sin(x), x), _over_a_scan),
    "in a branch": by_vjp(
        lambda x: (jnp.sin(x), x),
        lambda x, g: (lax.cond(x[0] > 0, lambda: g * x, lambda: jnp.where(x > 0, 2 * g, 0.0)),),
    ),
    "static argument": lambda x: _power(x, 3),
    "None": lambda x: _one_of_two(x, jnp.cos(x)),
    "custom_jvp, true": by_jvp(jnp.tanh, lambda x, t: t / jnp.cosh(x) ** 2),
    "custom_jvp, untrue": by_jvp(lambda x: jnp.clip(x, -1, 1), lambda x, t: t * jnp.exp(-x * x)),
    "custom_jvp, a matrix": by_jvp(jnp.sin, lambda x, t: x * jnp.sum(t) + t[::-1] * jnp.cos(x)),
}
"""By what they are called: provably linear."""

NOT_LINEAR: dict[str, Any] = {
    "affine": by_vjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g + 0.1 * x,)),
    "auxiliary loss": by_vjp(lambda x: (x, x), lambda x, g: (g + 0.01,)),
    "through integers": by_vjp(
        lambda x: (jnp.sin(x), x),
        lambda x, g: (jnp.cos(x) * (g * 127e2).astype(jnp.int32).astype(g.dtype) / 127e2,),
    ),
    "clipped": by_vjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.2, 0.2),)),
    "no NaN": by_vjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.nan_to_num(g * jnp.cos(x)),)),
    "sign": by_vjp(lambda x: (x, None), lambda _, g: (jnp.sign(g) * 1e-1,)),
    "squared": by_vjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * g * jnp.cos(x),)),
    "a predicate": by_vjp(
        lambda x: (jnp.sin(x), x),
        lambda x, g: (jnp.where(jnp.abs(g) < 0.3, g, 0.5 * g) * jnp.cos(x),),
    ),
    "if finite": by_vjp(
        lambda x: (jnp.sin(x), x),
        lambda x, g: (
            lax.cond(jnp.all(jnp.isfinite(g)), lambda g: g * jnp.cos(x), lambda g: 0 * g, g),
        ),
    ),
    "normalised": by_vjp(
        lambda x: (x, None), lambda _, g: (g / (1e-6 + jnp.sqrt(jnp.sum(g * g))),)
    ),
    "stopped": by_vjp(lambda x: (x, x), lambda x, g: (lax.stop_gradient(g) * x,)),
    "custom function on the cotangent": by_vjp(
        lambda x: (jnp.sin(x), x), lambda x, g: (jnp.cos(x) * _reversed(g),)
    ),
    "custom function on the tangent": by_jvp(jnp.sin, lambda x, t: _reversed(t) * jnp.cos(x)),
    "a while loop": by_vjp(
        lambda x: (jnp.sin(x), x),
        lambda x, g: (
            lax.while_loop(lambda s: s[1] < 2, lambda s: (s[0] * x, s[1] + 1), (g, 0))[0],
        ),
    ),
}
"""By what they are called: rules that are no linear map, or not one that JAX can transpose."""
