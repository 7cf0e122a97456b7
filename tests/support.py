"""What the tests share: plain JAX against mixflow, and what a capture holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.tree_util import tree_flatten, tree_unflatten

import mixflow
from mixflow.compiler.capture.capture import Captured, capture
from mixflow.passes import DEFAULT_PIPELINE

UNSEGMENTED = DEFAULT_PIPELINE.removesuffix(",segment-loss")
"""Segments take tracing and compiling time, and have tests of their own."""


once = pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="tested once, with the oldest JAX: it takes long"
)
"""For tests of what the project shows and measures; those of what it computes run on each JAX."""


unflagged = pytest.mark.skipif(
    jax.config.jax_remat3 or jax.config.jax_custom_vjp3,
    reason="it looks for equations in JAX's own trace, which JAX's flags make others of",
)
"""For tests of what mixflow only ever sees with the flags off: it takes their forms back first."""


def compiled(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`f` with every rewrite of its loops, whether or not the planner would find that it pays."""
    return mixflow.compile(f, **{"passes": UNSEGMENTED, **options})


def captures(
    f: Callable[..., Any],
    *args: Any,
    assume_symmetric: str | tuple[str, ...] = (),
    **kwargs: Any,
) -> Captured:
    """The trace of `f` at these arguments under mixflow."""
    leaves, tree = tree_flatten((args, kwargs))

    def flat(*leaves: Any) -> Any:
        args, kwargs = tree_unflatten(tree, leaves)
        return f(*args, **kwargs)

    return capture(flat, leaves, assume_symmetric)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, at any depth, those inside symbolic derivatives included."""
    for equation in jaxpr.eqns:
        yield equation
        inner = [*jaxprs_in_params(equation.params)]
        if "function" in equation.params:
            inner.append(equation.params["function"].jaxpr.jaxpr)
        for other in inner:
            yield from equations(other)


def primitives(jaxpr: Any) -> Counter[str]:
    """How often each primitive stands in a jaxpr, at any depth."""
    return Counter(equation.primitive.name for equation in equations(jaxpr))


def differentiands(jaxpr: Any) -> list[Any]:
    """The functions that a jaxpr differentiates symbolically, each once."""
    found = [equation.params.get("function") for equation in equations(jaxpr)]
    return list({id(function): function for function in found if function is not None}.values())


def suspects(captured: Captured) -> list[Any]:
    """Every suspect recorded in a trace."""
    return [suspect for f in differentiands(captured.jaxpr) for suspect in f.suspects]


def reasons(captured: Captured) -> str:
    """Why things were not captured, in one string."""
    return "; ".join(decline.why for decline in captured.declines)


def relative_error(a: Any, b: Any) -> float:
    """The largest ‖a - b‖∞ / ‖b‖∞ over leaves; integers, keys and float0 must be equal."""
    left, left_tree = tree_flatten(a)
    right, right_tree = tree_flatten(b)
    assert left_tree == right_tree
    return max(map(_leaf_error, left, right), default=0.0)


def _leaf_error(a: Any, b: Any) -> float:
    assert (jax.typeof(a).shape, jax.typeof(a).dtype) == (jax.typeof(b).shape, jax.typeof(b).dtype)
    if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    if b.dtype == jax.dtypes.float0 or not jnp.issubdtype(b.dtype, np.inexact):
        assert (np.asarray(a) == np.asarray(b)).all()
        return 0.0
    wide = np.complex128 if np.issubdtype(b.dtype, np.complexfloating) else np.float64
    a, b = np.asarray(a, wide), np.asarray(b, wide)
    assert np.isfinite(b).all(), "plain JAX's own result is not finite: the test proves nothing"
    if a.size == 0:
        return 0.0
    scale = abs(b).max()
    return float(abs(a - b).max() / (scale if scale > 0 else 1.0))


def assert_close(a: Any, b: Any, tolerance: float = 1e-9) -> None:
    """Equal structures, shapes and dtypes, and equal values up to rounding."""
    error = relative_error(a, b)
    assert error <= tolerance, f"relative error {error:.2e}\n{a}\nin place of\n{b}"


def in_double_precision(args: Any) -> Any:
    """The same arguments, every float in float64."""

    def cast(leaf: Any) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if is_float else leaf

    return jax.tree.map(cast, args)


def assert_same_meta_gradient(
    f: Callable[..., Any],
    *args: Any,
    argnums: int | tuple[int, ...] = 0,
    tolerance: float = 1e-9,
    captured: bool = True,
    assume_symmetric: str | tuple[str, ...] = (),
) -> Captured:
    """Value and gradient of `f` equal plain JAX's, differentiated outside of mixflow and inside.

    Arguments:
        f: a meta-loss; a scalar.
        captured: whether a symbolic pullback has to be in the trace of `f`.

    Returns:
        The trace of `f`.
    """
    options: dict[str, Any] = {"assume_symmetric": assume_symmetric} if assume_symmetric else {}
    expected = jax.jit(jax.value_and_grad(f, argnums))(*args)
    outside = jax.jit(jax.value_and_grad(compiled(f, **options), argnums))(*args)
    inside = compiled(jax.value_and_grad(f, argnums), **options)(*args)
    assert_close(outside, expected, tolerance)
    assert_close(inside, expected, tolerance)
    trace = captures(f, *args, **options)
    assert (primitives(trace.jaxpr)["mixflow_vjp"] > 0) == captured, trace.declines
    return trace


MODEL = """
import jax, jax.numpy as jnp, mixflow
from mixflow.passes import DEFAULT_PIPELINE

def loss(theta, eta, x):
    return jnp.sum(jnp.tanh(x @ theta) ** 2 * jnp.exp(eta))

@mixflow.compile(passes=DEFAULT_PIPELINE)
def meta_loss(eta, theta, xs):
    def step(theta, x):
        return theta - 0.1 * jax.grad(loss)(theta, eta, x), None
    theta, _ = jax.lax.scan(step, theta, xs)
    return jnp.sum(theta ** 2)

@meta_loss.example_args
def _():
    return jnp.float32(0.1), jnp.ones((3, 2)), jax.ShapeDtypeStruct((4, 5, 3), jnp.float32)
"""
"""A model file with one entry: what tests of commands give them."""
