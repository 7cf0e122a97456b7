"""`vmap` on either side of the symbolic derivative."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from programs import (
    ETA,
    FEW,
    TANGENT,
    THETA,
    gradient,
    key_constants,
    nested,
    only_cotangents_active,
    plain,
    point_inactive,
    scalar,
    symbolic,
    value_with_aux,
    with_aux,
)
from support import assert_close

import mixflow

# Which of x, c and w are mapped differs from one of these programs to the next.
MAPPED = [*FEW, point_inactive, only_cotangents_active, with_aux, key_constants, nested]
ROWS = {
    "point": (jnp.outer(jnp.arange(1.0, 3.0), THETA), ETA, (0, None)),
    "constants": (THETA, jnp.outer(jnp.arange(1.0, 3.0), ETA), (None, 0)),
    "both": (jnp.outer(jnp.arange(1.0, 3.0), THETA), jnp.outer(ETA[:2], ETA), (0, 0)),
    "another axis": (jnp.outer(THETA, jnp.arange(1.0, 3.0)), jnp.outer(ETA, ETA[:2]), (1, -1)),
}
each_mapping = pytest.mark.parametrize("mapping", ROWS)


@pytest.mark.parametrize("program", MAPPED, ids=lambda f: f.__name__)
@each_mapping
def test_gradient_of_a_mapped_program(program: Any, mapping: str) -> None:
    theta, eta, axes = ROWS[mapping]
    expected = jax.jit(jax.grad(scalar(jax.vmap(plain(program), axes)), (0, 1)))(theta, eta)
    found = jax.jit(jax.grad(scalar(jax.vmap(symbolic(program), axes)), (0, 1)))(theta, eta)
    assert_close(found, expected)


@pytest.mark.parametrize("program", FEW, ids=lambda f: f.__name__)
@each_mapping
def test_mapped_gradient_of_a_program(program: Any, mapping: str) -> None:
    theta, eta, axes = ROWS[mapping]
    expected = jax.jit(jax.vmap(jax.grad(scalar(plain(program)), (0, 1)), axes))(theta, eta)
    found = jax.jit(jax.vmap(jax.grad(scalar(symbolic(program)), (0, 1)), axes))(theta, eta)
    assert_close(found, expected)


@pytest.mark.parametrize("program", FEW, ids=lambda f: f.__name__)
def test_mapped_over_tangents_alone(program: Any) -> None:
    def pushed(f: Any) -> Any:
        push = lambda t: jax.jvp(f, (THETA, ETA), (t, t))[1]  # noqa: E731
        return jax.jit(jax.vmap(push))(jnp.outer(TANGENT, ETA))

    assert_close(pushed(symbolic(program)), pushed(plain(program)))


def test_mapped_over_cotangents_alone() -> None:
    def rows(ad: Any, eta: Any) -> Any:
        def pulled(w: Any) -> Any:
            return ad.vjp(lambda theta: jnp.tanh(theta * eta) * theta, THETA)[1](w)[0]

        return jax.vmap(pulled)(jnp.outer(ETA, eta))

    def found(eta: Any) -> Any:
        return rows(mixflow, eta)

    def expected(eta: Any) -> Any:
        return rows(jax, eta)

    assert_close(jax.jit(found)(ETA), jax.jit(expected)(ETA))
    assert_close(jax.jit(jax.grad(scalar(found)))(ETA), jax.jit(jax.grad(scalar(expected)))(ETA))
    assert_close(jax.jit(jax.jacfwd(found))(ETA), jax.jit(jax.jacfwd(expected))(ETA))


@pytest.mark.parametrize("inner", [(0, None), (None, 0)], ids=str)
def test_two_maps(inner: Any) -> None:
    theta, eta = jnp.outer(THETA, jnp.arange(1.0, 3.0)).T, jnp.outer(ETA[:2], ETA)
    outer = tuple(0 if axis is None else None for axis in inner)

    def differentiated(f: Any) -> Any:
        mapped = jax.vmap(jax.vmap(f, inner, out_axes=-1), outer)
        return jax.jit(jax.grad(scalar(mapped), (0, 1)))(theta, eta)

    assert_close(differentiated(symbolic(value_with_aux)), differentiated(plain(value_with_aux)))


def test_a_map_of_size_one_and_of_size_zero() -> None:
    for size in (0, 1):
        theta = jnp.ones((size, 3)) / 2
        expected = jax.vmap(jax.grad(scalar(plain(gradient)), 1), (0, None))(theta, ETA)
        found = jax.vmap(jax.grad(scalar(symbolic(gradient)), 1), (0, None))(theta, ETA)
        assert_close(found, expected)


def test_an_unmapped_program_stays_unmapped() -> None:
    f, rows = symbolic(gradient), jnp.ones((2, 3))
    jaxpr = jax.make_jaxpr(jax.vmap(lambda row: row * f(THETA, ETA)))(rows)
    (equation,) = [e for e in jaxpr.eqns if e.primitive.name == "mixflow_vjp"]
    assert [aval.aval.shape for aval in equation.outvars] == [(3,)]
