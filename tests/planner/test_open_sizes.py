"""Sizes that `jax.export` has left open: every figure copes, and one program is right for all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import export, symbolic_shape
from support import assert_close

import mixflow
from mixflow.compiler.jaxprs.sizes import OPEN_SIZE, array_bytes, number_of

EVERYTHING = (
    "canonicalize,cse,fuse-value-and-pullback,peel-inactive-step,forward-over-reverse,"
    "checkpoint-inner-loop{levels=3},save-inner-gradients,keep-first-products,"
    "segment-loss{slack=0 rerun=3.0}"
)


def steps_over(loss: Any, theta: Any, xs: Any, eta: Any) -> Any:
    def step(theta: Any, x: Any) -> Any:
        return theta - 0.1 * jax.grad(loss)(theta, eta, x), jnp.sum(theta)

    theta, sums = jax.lax.scan(step, theta, xs)
    return jnp.sum(theta**2) + jnp.mean(sums)


def deep(theta: Any, eta: Any, x: Any) -> Any:
    for _ in range(3):
        x = jnp.tanh(x @ theta * eta)
    both = jnp.concatenate([x, x[::-1]]).reshape(-1)
    return jnp.mean(jax.nn.softmax(both) * both)


def of_layers(theta: Any, eta: Any, x: Any) -> Any:
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w * eta), None), x, theta)
    return jnp.mean(x**2)


@jax.custom_vjp
def act(x: Any) -> Any:
    return jnp.sin(x)


def pull_over_rows(x: Any, g: Any) -> tuple[Any]:
    return (jax.lax.scan(lambda g, row: (g * jnp.cos(jnp.sum(row) * x), None), g, x)[0],)


act.defvjp(lambda x: (jnp.sin(x), x), pull_over_rows)


def of_a_rule(theta: Any, eta: Any, x: Any) -> Any:
    return jnp.mean(act(x @ theta * eta) ** 2)


def with_a_rule(theta: Any, xs: Any, eta: Any) -> Any:
    return steps_over(of_a_rule, theta, xs, eta)


def in_tasks(theta: Any, xs: Any, eta: Any) -> Any:
    return jnp.mean(jax.vmap(lambda x: steps_over(deep, theta, x[None], eta))(xs))


def in_loops(theta: Any, xs: Any, eta: Any) -> Any:
    def outer(theta: Any, x: Any) -> Any:
        return jax.lax.scan(
            lambda theta, row: (theta - 0.1 * jax.grad(deep)(theta, eta, row[None]), None), theta, x
        )[0], None

    return jnp.sum(jax.lax.scan(outer, theta, xs)[0] ** 2)


def over_the_batches(theta: Any, xs: Any, eta: Any) -> Any:
    return steps_over(deep, theta, xs, eta)


def over_the_layers(theta: Any, xs: Any, eta: Any) -> Any:
    return steps_over(of_layers, jnp.tanh(xs + theta), jnp.ones((2, 4, 3)), eta)


ETA, THETA = jnp.float64(1.3), jnp.array(np.random.default_rng(0).normal(size=(3, 3)))
CASES: dict[str, tuple[Any, str, str | None]] = {
    "steps and a batch": (over_the_batches, "b, n, 3", None),
    "expressions": (over_the_batches, "2*b, n+1, 3", None),
    "loops in loops": (in_loops, "b, n, 3", None),
    "every pass": (over_the_batches, "b, n, 3", EVERYTHING),
    "every pass on a batch": (over_the_batches, "2, b, 3", EVERYTHING),
    "every pass on layers": (over_the_layers, "b, 3, 3", EVERYTHING),
    "a loop in a rule": (with_a_rule, "b, n, 3", "reverse-over-forward"),
    "every pass on tasks": (in_tasks, "b, n, 3", EVERYTHING),
}


def inside(f: Any) -> Any:
    return jax.grad(f, 2)


def exported(compiled: Any, shape: str) -> Any:
    specs = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in (THETA, ETA)]
    xs = jax.ShapeDtypeStruct(symbolic_shape(shape), THETA.dtype)
    return export(compiled)(specs[0], xs, specs[1])


def assert_same(program: Any, f: Any, shape: str, b: int, n: int) -> None:
    values = {"b": b, "2*b": 2 * b, "n": n, "n+1": n + 1, "2": 2, "3": 3}
    sizes = [values[one] for one in shape.split(", ")]
    xs = jnp.array(np.random.default_rng(1).normal(size=sizes))
    assert_close(program.call(THETA, xs, ETA), jax.jit(f)(THETA, xs, ETA))


@pytest.mark.parametrize("case", CASES)
def test_an_exported_program_is_right(case: str) -> None:
    f, shape, passes = CASES[case]
    program = exported(mixflow.compile(inside(f), passes=passes), shape)
    assert_same(program, inside(f), shape, 3, 2)


def test_differentiated_outside_in_a_jit_for_several_sizes() -> None:
    program = exported(jax.jit(inside(mixflow.compile(over_the_batches))), "b, n, 3")
    for b, n in ((1, 1), (4, 2)):
        assert_same(program, inside(over_the_batches), "b, n, 3", b, n)


def test_a_loop_of_open_length_is_planned_for_as_one_of_many_steps() -> None:
    compiled = mixflow.compile(inside(over_the_batches))

    def plan(shape: tuple[Any, ...]) -> str:
        return compiled.optimised(THETA, jax.ShapeDtypeStruct(shape, THETA.dtype), ETA).passes

    assert plan(symbolic_shape("b, 512, 3")) == plan((OPEN_SIZE, 512, 3))
    assert "checkpoint-inner-loop" in plan(symbolic_shape("b, 512, 3"))


@pytest.mark.parametrize(
    "options",
    [{"memory_budget": "1GiB"}, {"autotune": True}, {"passes": EVERYTHING, "memory_budget": 8}],
    ids=["budget", "autotune", "passes"],
)
def test_xla_is_not_asked_about_open_sizes(options: dict[str, Any]) -> None:
    """Nor are the symbols of one scope taken for those of another."""
    compiled = mixflow.compile(inside(over_the_batches), **options)
    for _ in range(2):
        assert exported(compiled, "b, 2, 3").out_avals[0].shape == ()


def test_that_a_budget_is_not_confirmed_is_said() -> None:
    compiled = mixflow.compile(inside(over_the_batches), memory_budget="1GiB")
    xs = jax.ShapeDtypeStruct(symbolic_shape("b, n, 3"), THETA.dtype)
    assert any(
        "estimate with 32" in one.text for one in compiled.optimised(THETA, xs, ETA).declines
    )
    closed = jax.ShapeDtypeStruct((2, 2, 3), THETA.dtype)
    declines = compiled.optimised(THETA, closed, ETA).declines
    assert not any("estimate" in one.text for one in declines)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("b", 32), ("2*b + 1", 65), ("b*n", 1024), ("floordiv(b, 3)", 10), ("max(b, 50)", 50)],
)
def test_a_size_that_is_left_open_as_a_number(expression: str, expected: int) -> None:
    (size,) = symbolic_shape(f"{expression},")
    assert number_of(size) == expected
    assert array_bytes(jax.core.ShapedArray((size, 2), jnp.float32)) == 8 * expected


def test_a_size_that_has_no_value_there_counts_as_its_symbol() -> None:
    (negative,), (none,) = symbolic_shape("b - 40,"), symbolic_shape("floordiv(b, b - 32),")
    assert number_of(negative) == number_of(none) == OPEN_SIZE
