"""Programs whose barriers XLA keeps have plain JAX's results: nothing is written over too early."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from support import assert_close

import mixflow

E, T, X = jnp.array(0.462), jnp.array([-0.438, 0.685]), jnp.array([0.719, -0.365])


def meta(e: Any, t: Any, x: Any) -> Any:
    """XLA of JAX 0.10 fuses this so that a value is read before and after its barrier at once."""

    def inner(h: Any) -> Any:
        return h + jax.grad(lambda h: jnp.sum(jnp.sin(h[:, None] * h[None, :])))(h)

    def loss(t: Any) -> Any:
        return jnp.sum((inner(x * t) * e) ** 2)

    return jnp.sum(jax.grad(loss)(t) ** 2)


@pytest.mark.parametrize("passes", ["forward-over-reverse", "reverse-over-forward"])
def test_a_value_before_and_after_its_barrier_in_one_kernel(passes: str) -> None:
    gradient = jax.grad(meta, argnums=(0, 1))
    expected = jax.jit(gradient)(E, T, X)
    assert_close(mixflow.compile(gradient, passes=passes)(E, T, X), expected)
    # The same in somebody else's jit, differentiated and mapped from outside.
    options = mixflow.compiler_options()
    inside = jax.jit(
        jax.grad(mixflow.compile(meta, passes=passes), argnums=(0, 1)), compiler_options=options
    )
    assert_close(inside(E, T, X), expected)


DTYPES = [bool, jnp.int8, jnp.uint32, jnp.bfloat16, jnp.float16, jnp.complex64, jnp.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)
def test_barriers_change_no_value(dtype: Any) -> None:
    options = mixflow.compiler_options()
    values = jnp.asarray([0.0, 1.0, 0.0, 1.0], dtype)
    held = jax.jit(lambda *v: lax.optimization_barrier(v), compiler_options=options)(values, X)[0]
    assert held.dtype == values.dtype
    assert (held == values).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex128])
def test_barriers_change_no_sign_of_zero(dtype: Any) -> None:
    @jax.jit
    def signs(values: Any) -> Any:
        held = lax.optimization_barrier(values * 1)
        return jnp.signbit(held.real), jnp.signbit(held.imag)

    negative = -jnp.zeros(2, dtype)
    for zeros in (negative, jnp.zeros(2, dtype)):
        expected = jnp.signbit(zeros.real), jnp.signbit(zeros.imag)
        assert all((a == b).all() for a, b in zip(signs(zeros), expected, strict=True))


def test_keys_pass_barriers() -> None:
    key = jax.random.key(3)
    held = jax.jit(lax.optimization_barrier, compiler_options=mixflow.compiler_options())(key)
    assert held == key
