"""Forward mode over the symbolic derivative."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from programs import ETA, FEW, PROGRAMS, TANGENT, THETA, gradient, plain, scalar, symbolic
from support import assert_close

import mixflow

each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)


@each_program
def test_jvp_in_every_argument(program: Any) -> None:
    point, tangents = (THETA, ETA), (TANGENT, ETA**2)
    expected = jax.jit(lambda *args: jax.jvp(plain(program), args, tangents))(*point)
    f = symbolic(program)
    assert_close(jax.jit(lambda *args: jax.jvp(f, args, tangents))(*point), expected)


@each_program
def test_jvp_in_one_argument(program: Any) -> None:
    expected = jax.jit(jax.jacfwd(plain(program), 1))(THETA, ETA)
    assert_close(jax.jit(jax.jacfwd(symbolic(program), 1))(THETA, ETA), expected)


@pytest.mark.parametrize("program", FEW, ids=lambda f: f.__name__)
def test_linearize(program: Any) -> None:
    def linearized(f: Any) -> Any:
        def run(theta: Any, eta: Any) -> Any:
            value, push = jax.linearize(f, theta, eta)
            return value, push(TANGENT, eta), jax.vmap(push)(jnp.eye(3), jnp.eye(3))

        return jax.jit(run)(THETA, ETA)

    assert_close(linearized(symbolic(program)), linearized(plain(program)))


def test_jvp_without_jit() -> None:
    point, tangents = (THETA, ETA), (TANGENT, ETA)
    assert_close(
        jax.jvp(symbolic(gradient), point, tangents), jax.jvp(plain(gradient), point, tangents)
    )


def test_integer_outputs_have_float0_tangents() -> None:
    def ordered(ad: Any, theta: Any) -> Any:
        value, aux = ad.grad(lambda t: (jnp.sum(t**3), jnp.argsort(t)), has_aux=True)(theta)
        return value, aux

    found = jax.jvp(lambda t: ordered(mixflow, t), (THETA,), (TANGENT,))
    assert_close(found, jax.jvp(lambda t: ordered(jax, t), (THETA,), (TANGENT,)))


def test_forward_over_reverse_over_the_primitive() -> None:
    hessian = jax.jacfwd(jax.grad(scalar(plain(gradient)), 1), 1)
    found = jax.jacfwd(jax.grad(scalar(symbolic(gradient)), 1), 1)
    assert_close(jax.jit(found)(THETA, ETA), jax.jit(hessian)(THETA, ETA))
