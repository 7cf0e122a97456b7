"""The symbolic derivative under jit, in loops and branches, and under rematerialisation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from programs import ETA, FEW, PROGRAMS, THETA, gradient, loss, plain, scalar, symbolic
from support import assert_close, primitives, unflagged

import mixflow

each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)


@each_program
def test_value(program: Any) -> None:
    expected = jax.jit(plain(program))(THETA, ETA)
    assert_close(jax.jit(symbolic(program))(THETA, ETA), expected)


@pytest.mark.parametrize("program", FEW[:3], ids=lambda f: f.__name__)
def test_value_without_jit(program: Any) -> None:
    assert_close(symbolic(program)(THETA, ETA), plain(program)(THETA, ETA))


def in_a_scan(step: Any, theta: Any, eta: Any) -> Any:
    return jax.lax.scan(lambda t, x: (step(t, eta * x), t), theta, jnp.ones(2))


def in_a_fori_loop(step: Any, theta: Any, eta: Any) -> Any:
    return jax.lax.fori_loop(0, 2, lambda _, t: step(t, eta), theta)


def in_a_branch(step: Any, theta: Any, eta: Any) -> Any:
    return jax.lax.cond(theta[0] > 0, step, lambda t, e: t * e, theta, eta)


def in_the_other_branch(step: Any, theta: Any, eta: Any) -> Any:
    return jax.lax.cond(theta[0] < 0, step, lambda t, e: t * e, theta, eta)


def in_a_checkpoint(step: Any, theta: Any, eta: Any) -> Any:
    return jax.checkpoint(lambda t, e: step(step(t, e), e))(theta, eta)


def in_a_checkpointed_scan(step: Any, theta: Any, eta: Any) -> Any:
    body = jax.checkpoint(lambda t, _: (step(t, eta), None))
    return jax.lax.scan(body, theta, None, length=2)[0]


def in_a_checkpoint_that_saves_the_gradient(step: Any, theta: Any, eta: Any) -> Any:
    policy = jax.checkpoint_policies.save_only_these_names("gradient")
    named = lambda t, e: checkpoint_name(step(t, e), "gradient") * jnp.sin(e)  # noqa: E731
    return jax.checkpoint(named, policy=policy)(theta, eta)


def in_a_checkpoint_that_saves_everything(step: Any, theta: Any, eta: Any) -> Any:
    policy = jax.checkpoint_policies.everything_saveable
    return jax.checkpoint(step, policy=policy)(theta, eta)


def in_a_jit_in_a_jit(step: Any, theta: Any, eta: Any) -> Any:
    return jax.jit(lambda t, e: jax.jit(step)(jax.jit(step)(t, e), e))(theta, eta)


def in_a_map_in_a_scan(step: Any, theta: Any, eta: Any) -> Any:
    mapped = jax.vmap(step, (0, None))
    tasks = jnp.stack([theta, 2 * theta])
    return jax.lax.scan(lambda t, _: (mapped(t, eta), None), tasks, None, length=2)[0]


PLACES = [value for name, value in list(globals().items()) if name.startswith("in_")]


@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
def test_gradient(place: Any) -> None:
    def run(ad: Any) -> Any:
        step = lambda t, e: t - 0.1 * ad.grad(loss)(t, e)  # noqa: E731
        meta_loss = scalar(lambda t, e: place(step, t, e))
        return jax.jit(jax.value_and_grad(meta_loss, (0, 1)))(THETA, ETA)

    assert_close(run(mixflow), run(jax))


@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
def test_forward_mode(place: Any) -> None:
    def run(ad: Any) -> Any:
        step = lambda t, e: t - 0.1 * ad.grad(loss)(t, e)  # noqa: E731
        return jax.jit(jax.jacfwd(lambda e: place(step, THETA, e)))(ETA)

    assert_close(run(mixflow), run(jax))


@unflagged
def test_a_saved_gradient_is_not_computed_again() -> None:
    def count(policy: Any) -> int:
        def step(theta: Any, eta: Any) -> Any:
            return theta - 0.1 * checkpoint_name(symbolic(gradient)(theta, eta), "gradient")

        saved = jax.checkpoint(lambda t, e: jnp.sum(step(t, e) ** 3), policy=policy)
        return primitives(jax.make_jaxpr(jax.grad(saved, 1))(THETA, ETA).jaxpr)["mixflow_vjp"]

    policies = jax.checkpoint_policies
    assert count(policies.save_only_these_names("gradient")) == 1
    assert count(policies.nothing_saveable) == 2


def test_ahead_of_time_compilation() -> None:
    expected = jax.jit(plain(gradient))(THETA, ETA)
    found = jax.jit(symbolic(gradient)).lower(THETA, ETA).compile()(THETA, ETA)
    assert_close(found, expected)


def test_abstract_evaluation() -> None:
    types = jax.eval_shape(symbolic(gradient), THETA, ETA)
    assert (types.shape, types.dtype) == (THETA.shape, THETA.dtype)


def test_donated_arguments() -> None:
    step = jax.jit(lambda t, e: t - mixflow.grad(loss)(t, e), donate_argnums=0)
    expected = THETA - jax.grad(loss)(THETA, ETA)
    assert_close(step(THETA + 0, ETA), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_are_kept(dtype: Any) -> None:
    theta = THETA.astype(dtype)
    expected = jax.eval_shape(jax.grad(scalar(plain(gradient)), (0, 1)), theta, ETA)
    found = jax.eval_shape(jax.grad(scalar(symbolic(gradient)), (0, 1)), theta, ETA)
    assert [x.dtype for x in found] == [x.dtype for x in expected]


def test_the_explicit_forms_capture_inside_their_own_call_alone() -> None:
    mixflow.grad(loss)(THETA, ETA)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(THETA, ETA)
    assert not [e for e in jaxpr.eqns if e.primitive.name.startswith("mixflow")]
