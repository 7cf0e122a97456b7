"""Reverse mode over the symbolic derivative, by the transposed rule alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from programs import ETA, FEW, PROGRAMS, TANGENT, THETA, plain, scalar, symbolic
from support import assert_close

from mixflow.compiler.derivative import vjp_primitive
from mixflow.compiler.derivative.differentiand import Differentiand, Rule

each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
few_programs = pytest.mark.parametrize("program", FEW, ids=lambda f: f.__name__)


@pytest.fixture(autouse=True)
def transposed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every derivative has the transposed rule; gives what it was used for."""
    used = list[Any]()
    rule = vjp_primitive.transposed_pullback

    def noted(function: Any, *args: Any) -> Any:
        used.append(function)
        return rule(function, *args)

    monkeypatch.setattr(Differentiand, "rule", Rule.TRANSPOSED)
    monkeypatch.setattr(vjp_primitive, "transposed_pullback", noted)
    return used


@each_program
def test_gradient_in_every_argument(program: Any, transposed: list[Any]) -> None:
    expected = jax.jit(jax.value_and_grad(scalar(plain(program)), (0, 1)))(THETA, ETA)
    found = jax.jit(jax.value_and_grad(scalar(symbolic(program)), (0, 1)))(THETA, ETA)
    assert_close(found, expected)
    assert transposed or program.__name__ == "aux_alone"


@each_program
@pytest.mark.parametrize("argument", [0, 1])
def test_gradient_in_one_argument(program: Any, argument: int) -> None:
    expected = jax.jit(jax.grad(scalar(plain(program)), argument))(THETA, ETA)
    assert_close(jax.jit(jax.grad(scalar(symbolic(program)), argument))(THETA, ETA), expected)


@few_programs
def test_forward_mode_outside(program: Any) -> None:
    def gradient(program: Any) -> Any:
        return jax.jit(
            lambda theta: jax.jvp(jax.grad(scalar(program)), (theta, ETA), (TANGENT, TANGENT))
        )

    assert_close(gradient(symbolic(program))(THETA), gradient(plain(program))(THETA))


@few_programs
def test_third_order(program: Any) -> None:
    def third(program: Any) -> Any:
        inner = jax.grad(scalar(program))
        return jax.jit(jax.grad(lambda t, e: jnp.sum(jnp.sin(inner(t, e))), (0, 1)))

    assert_close(third(symbolic(program))(THETA, ETA), third(plain(program))(THETA, ETA))


@few_programs
def test_mapped(program: Any) -> None:
    thetas = jnp.stack([THETA, THETA[::-1], 2 * THETA])

    def mapped(program: Any) -> Any:
        return jax.jit(jax.vmap(jax.grad(scalar(program), (0, 1)), (0, None)))

    assert_close(mapped(symbolic(program))(thetas, ETA), mapped(plain(program))(thetas, ETA))


@few_programs
def test_jacrev(program: Any) -> None:
    expected = jax.jit(jax.jacrev(plain(program), (0, 1)))(THETA, ETA)
    assert_close(jax.jit(jax.jacrev(symbolic(program), (0, 1)))(THETA, ETA), expected)
