"""Checkpoints whose barriers are told one by one, whatever operands JAX's rules give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from support import assert_close, equations, unflagged

W, X = jnp.linspace(-1.0, 1.0, 9).reshape(3, 3), jnp.linspace(0.5, 2.0, 6).reshape(2, 3)
XS = jnp.stack([X, 2.0 * X])
TABLE, KEY = np.array([1.0, 2.0, 3.0]), jax.random.key(0)
POLICIES = jax.checkpoint_policies

Function = Callable[..., Any]


def with_jvp(rule: Function) -> Function:
    """A function of x with a forward-mode rule: from x and its tangent to the result's tangent."""
    f = jax.custom_jvp(jnp.sin)
    f.defjvps(lambda tangent, _, x: rule(x, tangent))
    return f


def with_vjp(forward: Function, backward: Function) -> Function:
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(forward, backward)
    return f


TABLE_IN_JVP = with_jvp(lambda x, tangent: tangent * jnp.cos(x) * TABLE)
TABLE_IN_VJP = with_vjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x) * TABLE,))


@jax.custom_batching.custom_vmap
def batched_by_table(x: Any) -> Any:
    return jnp.sin(x) * TABLE


@batched_by_table.def_vmap
def _batched(size: int, batched: Any, x: Any) -> Any:
    return jnp.sin(x) * np.ones((size, 1, 1)) * TABLE, True


KINDS: dict[str, Function] = {
    "a NumPy array": lambda x: jnp.sin(x) * TABLE,
    "a NumPy scalar": lambda x: jnp.sin(x) * np.float64(0.5) * np.array(0.5),
    "a JAX array": lambda x: jnp.sin(x) * jnp.asarray(TABLE),
    "a key": lambda x: jnp.sin(x) * jax.random.normal(KEY, (3,)),
    "a jit with an array": jax.jit(lambda x: jnp.sin(x) * TABLE),
    "a NumPy array in a custom_jvp": TABLE_IN_JVP,
    "a JAX array in a custom_jvp": with_jvp(lambda x, t: t * jnp.cos(x) * jnp.asarray(TABLE)),
    "a key in a custom_jvp": with_jvp(lambda x, t: t * jnp.cos(x) * jax.random.normal(KEY, (3,))),
    "a look-up in a custom_jvp": with_jvp(
        lambda x, t: t * x * jnp.asarray(TABLE)[np.array([2, 0, 1])]
    ),
    "a custom_jvp in a scan": lambda x: jax.lax.scan(
        lambda h, _: (TABLE_IN_JVP(h), None), x, length=2
    )[0],
    "a custom_jvp in a branch": lambda x: jax.lax.cond(x[0, 0] > 0, TABLE_IN_JVP, jnp.cos, x),
    "a custom_jvp under vmap": jax.vmap(TABLE_IN_JVP),
    "a custom_vjp's forward rule": with_vjp(
        lambda x: (jnp.sin(x) * TABLE, x), lambda x, g: (g * jnp.cos(x) * TABLE,)
    ),
    "a custom_vjp's backward rule": TABLE_IN_VJP,
    "a custom_vjp's residual": with_vjp(
        lambda x: (jnp.sin(x), (x, TABLE)), lambda r, g: (g * jnp.cos(r[0]) * r[1],)
    ),
    "a user's checkpoint": jax.checkpoint(lambda x: jnp.sin(TABLE_IN_JVP(x))),
    "user's checkpoints in each other": jax.checkpoint(
        lambda x: jax.checkpoint(lambda y: jnp.tanh(jnp.sin(y) * TABLE))(TABLE_IN_JVP(x))
    ),
    "a user's policy": jax.checkpoint(
        lambda x: TABLE_IN_JVP(checkpoint_name(jnp.tanh(x), "a")),
        policy=POLICIES.save_only_these_names("a"),
    ),
    "static arguments": lambda x: jax.checkpoint(
        lambda n, x: TABLE_IN_JVP(x) * n, static_argnums=(0,)
    )(3, x),
}


def loss_of(f: Function, checkpoint: Function) -> Function:
    layer = checkpoint(lambda w, x: jnp.tanh(f(x @ w)))
    return lambda w, x: jnp.sum(layer(w, x) ** 2)


def one_by_one(f: Function, **options: Any) -> Function:
    return jax.checkpoint(f, prevent_cse=(False, True), **options)


def assert_as_without(
    f: Function, checkpoint: Function, transform: Function, w: Any = W, x: Any = X
) -> None:
    """A transformed loss is what it is without checkpoints, and no checkpoint lacks barriers."""
    checkpointed, plain = transform(loss_of(f, checkpoint)), transform(loss_of(f, lambda f: f))
    for eqn in equations(jax.make_jaxpr(checkpointed)(w, x).jaxpr):
        barriers = eqn.params.get("prevent_cse")
        assert not isinstance(barriers, tuple) or len(barriers) == len(eqn.invars)
    assert_close(jax.jit(checkpointed)(w, x), jax.jit(plain)(w, x))


def second(f: Function) -> Function:
    """Reverse over reverse: forward mode, then transposition, of what both made before."""
    return jax.grad(lambda w, x: jnp.sum(jax.grad(f)(w, x) ** 2))


@unflagged
@pytest.mark.parametrize("kind", KINDS)
def test_constants_of_every_kind(kind: str) -> None:
    assert_as_without(KINDS[kind], one_by_one, second)


DERIVATIVES: dict[str, Function] = {
    "forward": lambda f: lambda w, x: jax.jvp(f, (w, x), (w, x)),
    "reverse": lambda f: jax.grad(f, (0, 1)),
    "linearized and transposed": lambda f: (
        lambda w, x: jax.linear_transpose(jax.linearize(f, w, x)[1], w, x)(1.0)
    ),
    "batched": lambda f: lambda w, x: jax.vmap(jax.grad(f), (0, None))(jnp.stack([w, 2.0 * w]), x),
    "of a batch": lambda f: jax.grad(
        lambda w, x: jnp.sum(jax.vmap(jax.grad(f), (None, 0))(w, jnp.stack([x, 2.0 * x])) ** 2)
    ),
    "third order": lambda f: jax.grad(lambda w, x: jnp.sum(second(f)(w, x) ** 2)),
}


@unflagged
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives_of_every_kind(derivative: str) -> None:
    assert_as_without(TABLE_IN_JVP, one_by_one, DERIVATIVES[derivative])


def test_a_batching_rule_with_an_array() -> None:
    # JAX itself has no reverse mode for a custom_vmap in a checkpoint.
    assert_as_without(batched_by_table, one_by_one, lambda f: jax.vmap(f, (None, 0)), W, XS)


AROUND: dict[str, dict[str, Any]] = {
    "nothing": {},
    "everything": {"policy": POLICIES.everything_saveable},
    "products": {"policy": POLICIES.dots_saveable},
    "all but one name": {"policy": POLICIES.save_any_names_but_these("b")},
    "products, one by one": {"policy": POLICIES.dots_saveable, "prevent_cse": (True, False)},
}


@pytest.mark.parametrize("saved", AROUND)
def test_a_checkpoint_in_a_checkpoint(saved: str) -> None:
    def nested(f: Function) -> Function:
        return jax.checkpoint(one_by_one(f), **AROUND[saved])

    assert_as_without(lambda x: TABLE_IN_JVP(checkpoint_name(x, "a")), nested, second)
