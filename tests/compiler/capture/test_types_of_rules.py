"""Results have the dtype and the weak type that custom rules give them, as in plain JAX."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import captures, compiled, reasons


def strong(x: Any) -> Any:
    return x + jnp.zeros((), jnp.float32)


def as_it_is(x: Any) -> Any:
    return x


def by_custom_vjp(value: Any, ruled: Any, pulled: Any) -> Any:
    f = jax.custom_vjp(lambda x: value(jnp.sin(x)))
    f.defvjp(lambda x: (ruled(jnp.sin(x)), x), lambda x, g: (pulled(g * jnp.cos(x)),))
    return f


def by_custom_jvp(value: Any, ruled: Any, pushed: Any) -> Any:
    f = jax.custom_jvp(lambda x: value(jnp.sin(x)))
    f.defjvp(lambda p, t: (ruled(jnp.sin(p[0])), pushed(t[0] * jnp.cos(p[0]))))
    return f


def value_and_gradient(f: Any, x: Any) -> Any:
    return jax.value_and_grad(f)(x)


def pulled_back(f: Any, x: Any) -> Any:
    value, pullback = jax.vjp(f, x)
    return value, pullback(value), pullback(jnp.ones_like(value))


def with_auxiliary_data(f: Any, x: Any) -> Any:
    return jax.value_and_grad(lambda x: (f(x) ** 2, (f(x), jax.jit(f)(x))), has_aux=True)(x)


def computed_from(f: Any, x: Any) -> Any:
    """Where plain JAX runs the rule, the product is of float32; by the function, of bfloat16."""
    half = jnp.ones(2, jnp.bfloat16)
    return jax.value_and_grad(lambda x: (jnp.sum(f(x) * half), f(x) * half), has_aux=True)(x)


def computed_from_a_jit(f: Any, x: Any) -> Any:
    half = jnp.ones(2, jnp.bfloat16)
    return jax.value_and_grad(lambda x: jnp.sum(jax.jit(f)(x) * half))(x)


def pushed_forward(f: Any, x: Any) -> Any:
    return jax.jvp(jax.grad(f), (x,), (x,)), jax.grad(jax.grad(f))(x)


TYPED = (
    *(value_and_gradient, pulled_back, with_auxiliary_data),
    *(computed_from, computed_from_a_jit, pushed_forward),
)


@pytest.mark.parametrize("use", TYPED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("rule", [by_custom_vjp, by_custom_jvp], ids=lambda f: f.__name__)
def test_dtypes_and_weak_types_are_those_that_the_rules_give(rule: Any, use: Any) -> None:
    """Of a weakly typed point, with the function, its value's rule or its derivative's strong."""

    def types(step: Any, point: Any) -> Any:
        results = jax.tree.leaves(jax.eval_shape(step, point))
        return [(x.dtype, x.weak_type) for x in results]

    with jax.enable_x64(False):
        for marks in itertools.product((as_it_is, strong), repeat=3):
            step = functools.partial(use, rule(*marks))
            ours = compiled(step, passes="canonicalize,fuse-value-and-pullback")
            assert types(ours, 0.5) == types(step, 0.5), marks
            assert types(ours, jnp.float32(0.5)) == types(step, jnp.float32(0.5)), marks


def test_a_rule_that_types_its_value_otherwise_is_run_as_jax_runs_it() -> None:
    f = by_custom_vjp(as_it_is, strong, as_it_is)
    with jax.enable_x64(False):
        trace = captures(lambda: computed_from(f, 0.5))
        assert "another weak type" in reasons(trace)
        assert not captures(lambda: value_and_gradient(f, 0.5)).declines
        assert not captures(lambda: computed_from(f, jnp.float32(0.5))).declines
