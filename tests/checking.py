"""Passes on small Python functions: the printed IR against CHECK lines, and the numbers."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts
from jax.extend.core import check_jaxpr, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr
from support import assert_close, captures

import mixflow
from mixflow.planner.pipeline import Optimised, optimise, parse_passes


def optimised(
    passes: str,
    f: Callable[..., Any],
    *args: Any,
    differentiated: bool = False,
    assume_symmetric: str | tuple[str, ...] = (),
) -> Optimised:
    """`f` captured and put through some passes; what comes out is a valid jaxpr."""
    captured = captures(f, *args, assume_symmetric=assume_symmetric)
    result = optimise(captured, parse_passes(passes), differentiated=differentiated)
    check_jaxpr(result.jaxpr.jaxpr)
    return result


def ir(passes: str, f: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The text after some passes, without source lines."""
    return re.sub(r"  loc\(.*\)", "", str(optimised(passes, f, *args, **options).module))


def check(text: str, lines: str) -> None:
    """Run filecheck on a text.

    Arguments:
        lines: `CHECK: …`, `CHECK-NEXT: …`, `CHECK-NOT: …` and so on.

    Raises:
        AssertionError: with filecheck's own message.
    """
    options = Options("CHECK lines")
    matcher = Matcher(
        options, FInput("IR", text), Parser(options, io.StringIO(lines), *pattern_for_opts(options))
    )
    matcher.stderr = io.StringIO()
    with contextlib.redirect_stdout(matcher.stderr):
        failed = matcher.run()
    assert not failed, f"{matcher.stderr.getvalue()}\n{text}"


def assert_idempotent(before: str, name: str, f: Callable[..., Any], *args: Any, **options: Any):
    """Running a pass a second time changes nothing.

    Arguments:
        before: the passes that run before it, with a comma at the end, or nothing.
        name: the pass.
    """
    once = ir(f"{before}{name}", f, *args, **options)
    assert once == ir(f"{before}{name},{name}", f, *args, **options)
    assert once != ir(f"{before}dce", f, *args, **options), "the pass did nothing"


def assert_right(f: Callable[..., Any], *args: Any, **options: Any) -> None:
    """A scalar meta-loss and its gradient are plain JAX's, differentiated inside and outside."""
    _assert_equal_to(jax.jit(jax.value_and_grad(f))(*args), f, *args, **options)


def _assert_equal_to(plain: Any, f: Callable[..., Any], *args: Any, **options: Any) -> None:
    outside = jax.jit(jax.value_and_grad(mixflow.compile(f, **options)))(*args)
    inside = mixflow.compile(jax.value_and_grad(f), **options)(*args)
    assert_close(outside, plain)
    assert_close(inside, plain)


def run_and_measure(f: Any, *args: Any) -> tuple[Any, int]:
    """The result of a jitted or compiled function, and XLA's temporaries in bytes."""
    compiled = f.lower(*args).compile()
    return compiled(*args), compiled.memory_analysis().temp_size_in_bytes


def memory_of_unrolled_steps(act: Any, passes: str, *, steps: int, rows: int, layers: int) -> int:
    """XLA's temporaries in bytes for a meta-gradient through steps without a loop, if it is right.

    Arguments:
        act: the activation of each layer, 16 wide.
        passes: the plan.
        steps, rows, layers: inner steps, rows of data, layers of the network.
    """

    def loss(theta: Any, eta: Any) -> Any:
        y = jnp.ones((rows, 16))
        for layer in theta:
            y = act(y @ layer)
        return jnp.mean(jnp.exp(eta) * jnp.sum(y**2, 1))

    def outer(eta: Any, theta: Any) -> Any:
        for _ in range(steps):
            gradient = jax.grad(loss)(theta, eta)
            theta = jax.tree.map(lambda t, g: t - 0.1 * g, theta, gradient)
        return loss(theta, eta)

    f = jax.value_and_grad(outer)
    args = jnp.zeros(rows), [jnp.eye(16) * 0.9] * layers
    expected, _ = run_and_measure(jax.jit(f), *args)
    result, memory = run_and_measure(mixflow.compile(f, passes=passes), *args)
    assert_close(result, expected)
    return memory


def executed(closed: Any, primitive: str) -> int:
    """How often the live equations of a primitive run in a program, loops' trip counts included."""
    used = [True] * len(closed.jaxpr.outvars)
    return _executed(dce_jaxpr(closed.jaxpr, used)[0], primitive)


def _executed(jaxpr: Any, primitive: str) -> int:
    count = 0
    for eqn in jaxpr.eqns:
        inner = sum(_executed(nested, primitive) for nested in jaxprs_in_params(eqn.params))
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        count += (eqn.primitive.name == primitive) + times * inner
    return count


# --- meta-losses ------------------------------------------------------------------------------


def mlp_loss(theta: Any, eta: Any, x: Any) -> Any:
    """The loss of a multilayer perceptron; eta weights the examples."""
    y = x
    for layer in theta:
        y = jnp.tanh(y @ layer)
    return jnp.mean(jax.nn.sigmoid(eta) * jnp.sum((y - x) ** 2, 1))


def meta_loss(eta: Any, theta: Any, xs: Any) -> Any:
    """The loss after gradient steps in a scan, with the steps' own losses."""

    def step(theta, x):
        value, gradient = jax.value_and_grad(mlp_loss)(theta, eta["weights"], x)
        return jax.tree.map(lambda t, g: t - eta["rate"] * g, theta, gradient), value

    theta, values = jax.lax.scan(step, theta, xs)
    return mlp_loss(theta, 0.0, xs[0]) + 0.1 * jnp.sum(values)


def adaptive_meta_loss(eta: Any, theta: Any, xs: Any) -> Any:
    """As `meta_loss`, with second moments: a step has many element-wise intermediates."""

    def step(carry, x):
        theta, moments = carry
        gradient = jax.grad(mlp_loss)(theta, eta["weights"], x)
        moments = jax.tree.map(lambda v, g: 0.9 * v + g * g, moments, gradient)
        scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + 1e-3), gradient, moments)
        return (jax.tree.map(lambda t, g: t - eta["rate"] * g, theta, scaled), moments), None

    carry, _ = jax.lax.scan(step, (theta, jax.tree.map(jnp.ones_like, theta)), xs)
    return mlp_loss(carry[0], 0.0, xs[0])


def meta_args(steps: int = 3, batch: int = 5, width: int = 4, layers: int = 1) -> Any:
    """eta, theta and the batches; small unless said otherwise."""
    keys = jax.random.split(jax.random.key(0), layers + 1)
    theta = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys[1:]]
    eta = {"weights": jnp.linspace(-1.0, 1.0, batch), "rate": jnp.array(0.3)}
    return eta, theta, jax.random.normal(keys[0], (steps, batch, width))


MANY_EXAMPLES = {"steps": 12, "batch": 256, "width": 16, "layers": 2}
MANY_PARAMETERS = {"steps": 16, "batch": 8, "width": 48, "layers": 2}


@functools.cache
def _plain_meta_loss() -> Any:
    return jax.jit(jax.value_and_grad(meta_loss))(*meta_args())


def assert_meta_loss_right(passes: str) -> None:
    """As `assert_right` for the small `meta_loss`."""
    _assert_equal_to(_plain_meta_loss(), meta_loss, *meta_args(), passes=passes)


def assert_memory_falls(f: Callable[..., Any], args: Any, *steps: tuple[str, float]) -> None:
    """Each pipeline's meta-gradient is plain JAX's, in less memory than the one before it.

    Arguments:
        f: a meta-loss.
        steps: pipelines, each with the largest ratio of its temporaries to those of the one
            before it; the first is compared with plain JAX.
    """
    gradient = jax.grad(f)
    expected, before = run_and_measure(jax.jit(gradient), *args)
    for passes, ratio in steps:
        result, after = run_and_measure(mixflow.compile(gradient, passes=passes), *args)
        assert_close(result, expected)
        assert after < ratio * before, f"{passes}: {after} is {after / before:.2f} of {before}"
        before = after


THETA = jnp.array([0.5, -1.5, 2.0])


def loss(theta: Any, eta: Any) -> Any:
    """A small inner loss."""
    return jnp.sum(jnp.tanh(theta * eta) ** 2)


def step(theta: Any, eta: Any) -> Any:
    """One gradient step on it."""
    return theta - 0.1 * jax.grad(loss)(theta, eta)


def looped(body: Callable[..., Any], length: int = 3) -> Callable[..., Any]:
    """A meta-loss with a loop whose body maps theta and eta to the next theta."""

    def f(eta: Any) -> Any:
        theta, _ = jax.lax.scan(lambda t, _: (body(t, eta), None), THETA, None, length=length)
        return jnp.sum(jnp.sin(theta))

    return f
