"""Custom rules that cannot be run from an equation are JAX's own, with the reason."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from support import assert_close, captures, compiled, reasons

import mixflow

X = jnp.array([0.5, 1.5, -0.4])


@jax.custom_jvp
def zero(x: Any) -> Any:
    """Its value is mapped by no `vmap`, its tangent by every one."""
    return np.zeros(x.shape, x.dtype)


zero.defjvp(lambda primals, tangents: (zero(*primals), tangents[0] * jnp.cos(primals[0])))


@jax.custom_jvp
def injected(value: Any, x: Any) -> Any:
    return 2 * value


injected.defjvp(lambda primals, tangents: (injected(*primals), primals[1] * tangents[1]))


@jax.custom_vjp
def constant(x: Any) -> Any:
    return jnp.ones(())


constant.defvjp(lambda x: (1 + 0 * x, x), lambda x, ct: (jnp.sin(x) * ct,))


@pytest.mark.parametrize("rule", [zero, lambda x: injected(1.5, x), constant])
@pytest.mark.parametrize(
    "program",
    [
        lambda rule: lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(jax.vmap(rule)(x) * x))(x) ** 2),
        lambda rule: lambda x: jnp.sum(jax.vmap(jax.grad(lambda x: rule(x) * x))(x) ** 2),
    ],
    ids=["vmap inside", "vmap outside"],
)
def test_a_rule_whose_value_alone_is_mapped(rule: Any, program: Any) -> None:
    """Inside alone: JAX itself cannot differentiate a jit of such a function."""
    step = jax.value_and_grad(program(rule))
    assert_close(compiled(step)(X), jax.jit(step)(X))


def test_the_reason_names_the_shape() -> None:
    captured = captures(jax.grad(lambda x: jnp.sum(jax.vmap(zero)(x))), X)
    assert "a custom rule's value has another shape" in reasons(captured)


@jax.custom_vjp
def doubled(x: Any) -> Any:
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, ct: (2 * ct,))


@pytest.mark.parametrize("rule", [jax.nn.relu, doubled], ids=["trusted custom_jvp", "custom_vjp"])
def test_a_rule_that_was_checkified(rule: Any) -> None:
    """What checkify makes of it has more results than its rule."""
    checked = checkify.checkify(rule, errors=checkify.float_checks)
    gradient = jax.grad(lambda x: checked(x)[1] * x)
    assert_close(mixflow.compile(gradient)(1.5), jax.jit(gradient)(1.5))


@jax.custom_vjp
def steered(x: Any) -> Any:
    return jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)


def steered_fwd(x: Any) -> Any:
    return (jnp.sin(x), x) if x > 0 else (jnp.cos(x), x)


steered.defvjp(steered_fwd, lambda x, ct: (2 * ct if x > 0 else 3 * ct,))


@pytest.mark.parametrize("x", [1.5, -1.5])
def test_a_rule_that_is_steered_by_values(x: float) -> None:
    assert_close(mixflow.grad(steered)(x), jax.grad(steered)(x))


def test_under_a_jit_jax_says_that_values_are_missing() -> None:
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(jax.grad(steered))(1.5)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        mixflow.compile(jax.grad(steered))(1.5)


def test_a_mapped_custom_vjp_that_closes_over_an_array() -> None:
    table = jnp.arange(1.0, 4.0)
    f = jax.custom_vjp(lambda x: 3 * x * jnp.sum(table))
    f.defvjp(lambda x: (f(x), jnp.cos(x)), lambda kept, g: (2 * kept * g,))

    def loss(x: Any) -> Any:
        def steps(x: Any) -> Any:
            return jax.lax.scan(lambda c, _: (f(c), None), x, None, length=1)[0]

        return jax.vmap(steps)(x).sum()

    meta_gradient = jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))
    x = jnp.arange(3.0)
    for f_of_x in (jax.grad(loss), meta_gradient):
        assert_close(mixflow.compile(f_of_x)(x), jax.jit(f_of_x)(x))
