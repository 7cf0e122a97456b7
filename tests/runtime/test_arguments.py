"""Static arguments: told apart as `jax.jit` does, and handed on untouched, pytrees too."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_close

import mixflow
from mixflow.report.snapshot.describe import describe_entry
from mixflow.runtime.arguments import Arguments
from mixflow.runtime.artifact.export import export_program, parse_platforms
from mixflow.runtime.sides import compile_sides

X = jnp.array([0.5, -1.5, 2.0])


def scaled(x: Any, times: Any = 2, shift: Any = None, *, power: Any = 1) -> Any:
    return jnp.sin(x) ** power * times + (0 if shift is None else shift)


class Scaled:
    def __call__(self, x: Any, times: Any) -> Any:
        return x * times

    def method(self, x: Any, times: Any) -> Any:
        return x * times


CASES: dict[str, tuple[Any, dict[str, Any], tuple[Any, ...], dict[str, Any], Any]] = {
    "nothing": (scaled, {}, (X, 3), {"power": 2}, ((X, 3), {"power": 2})),
    "one number": (scaled, {"static_argnums": 1}, (X, 3), {}, ((X,), {})),
    "from the end": (jnp.multiply, {"static_argnums": -1}, (X, 3), {}, ((X,), {})),
    "by name": (scaled, {"static_argnames": "times"}, (X, 3), {}, ((X,), {})),
    "a keyword": (scaled, {"static_argnames": "power"}, (X,), {"power": 2}, ((X,), {})),
    "a number as a keyword": (scaled, {"static_argnums": (1,)}, (X,), {"times": 2}, ((X,), {})),
    "none is static": (scaled, {"static_argnums": (1, 2)}, (X, 3, None), {}, ((X,), {})),
    "none is traced": (scaled, {"static_argnums": 1}, (X, 3, None), {}, ((X, None), {})),
    "text": (scaled, {"static_argnums": 1}, (X, "3"), {}, ((X,), {})),
    "partial": (functools.partial(scaled, X), {"static_argnums": 0}, (3, X), {}, ((X,), {})),
    "callable": (Scaled(), {"static_argnames": "times"}, (X, 3), {}, ((X,), {})),
    "method": (Scaled().method, {"static_argnums": 1}, (X, 3), {}, ((X,), {})),
}


@pytest.mark.parametrize("case", CASES)
def test_static_arguments_are_left_out_and_nothing_else(case: str) -> None:
    fun, static, args, kwargs, expected = CASES[case]
    found = Arguments(fun, static).traced(args, kwargs)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    assert all(one is other for one, other in pairs)
    changed = Arguments(fun, static).mapped(lambda _: expected, args, kwargs)
    pairs = zip(jax.tree.leaves(changed), jax.tree.leaves((args, kwargs)), strict=True)
    assert all(one is other for one, other in pairs)


class Model:
    """A pytree whose flattening leaves the mode out."""

    def __init__(self, rate: Any, mode: str = "train") -> None:
        self.rate, self.mode = rate, mode

    def __hash__(self) -> int:
        return hash((self.rate, self.mode))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and vars(self) == vars(other)


class Closed(Model):
    """A pytree that cannot be flattened at all."""


def refuse(_: Closed) -> Any:
    raise ValueError("never flatten me")


jax.tree_util.register_pytree_node(Model, lambda m: ((m.rate,), None), lambda _, c: Model(*c))
jax.tree_util.register_pytree_node(Closed, refuse, lambda _, c: Closed(*c))

LOSSY, CLOSED = Model(0.25, "eval"), Closed(0.25, "eval")


def steps(eta: Any, model: Any, theta: Any = X) -> Any:
    """A meta-loss that knows its model by identity."""
    assert model is LOSSY or model is CLOSED
    weight = 2.0 if model.mode == "eval" else 1.0

    def step(theta: Any, _: Any) -> Any:
        return theta - model.rate * jax.grad(lambda t: jnp.sum(jnp.tanh(t * eta) ** 2))(theta), None

    return weight * jnp.sum(jax.lax.scan(step, theta, length=2)[0] ** 2)


EXPECTED = steps(X, CLOSED)

SAID: dict[str, tuple[dict[str, Any], Any]] = {
    "number": ({"static_argnums": 1}, lambda f, model: f(X, model)),
    "number from the end": ({"static_argnums": -2}, lambda f, model: f(X, model, X)),
    "number, given by name": ({"static_argnums": 1}, lambda f, model: f(X, model=model)),
    "name": ({"static_argnames": "model"}, lambda f, model: f(X, model=model)),
    "name, given by place": ({"static_argnames": ["model"]}, lambda f, model: f(X, model)),
    "both": (
        {"static_argnums": 1, "static_argnames": "model"},
        lambda f, model: f(X, model=model, theta=X),
    ),
}


@pytest.mark.parametrize("said", SAID)
def test_a_static_pytree_is_handed_on_as_it_is(said: str) -> None:
    static, call = SAID[said]
    assert_close(call(mixflow.compile(steps, **static), CLOSED), EXPECTED)


def test_what_flattening_leaves_out_is_there() -> None:
    assert_close(mixflow.compile(steps, static_argnums=1)(X, LOSSY), EXPECTED)


OPTIONS: dict[str, dict[str, Any]] = {
    "verify": {"verify": True},
    "autotune": {"autotune": True, "memory_budget": "1GiB"},
    "passes": {"passes": "forward-over-reverse", "memory_budget": "1GiB"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_under_every_option(options: dict[str, Any]) -> None:
    compiled = mixflow.compile(steps, static_argnums=1, **options)
    assert_close(compiled(X, CLOSED), EXPECTED)
    assert_close(compiled(X, model=CLOSED), EXPECTED)


def test_in_every_method() -> None:
    compiled = mixflow.compile(steps, static_argnames="model")
    assert_close(compiled.lower(X, CLOSED).compile()(X), EXPECTED)
    assert_close(compiled.trace(X, model=CLOSED).lower().compile()(X), EXPECTED)
    assert compiled.eval_shape(X, model=CLOSED).shape == ()
    assert "mixflow.vjp" in compiled.ir(X, CLOSED)
    assert "mixflow.vjp" in compiled.ir(X, before=True, model=CLOSED)
    assert compiled.optimised(X, model=CLOSED, differentiated=True).rewrites


def test_under_transformations_and_in_another_function() -> None:
    compiled = mixflow.compile(steps, static_argnames="model")
    expected = jax.grad(steps)(X, CLOSED)
    assert_close(jax.jit(jax.grad(compiled), static_argnums=1)(X, CLOSED), expected)
    assert_close(mixflow.compile(jax.grad(compiled), static_argnums=1)(X, CLOSED), expected)


def test_reports_snapshots_and_exports() -> None:
    compiled = mixflow.compile(steps, static_argnums=1)
    args = X, CLOSED, jax.ShapeDtypeStruct(X.shape, X.dtype)
    report = compiled.report(*args, run=True, verify=True)
    assert report.target == "value_and_grad in the first argument"
    assert report.verified is not None
    optimised, lowered = report.programs.optimised, report.programs.after.lowered
    exported = export_program(optimised, args, lowered, parse_platforms(None))
    assert [leaf.name for leaf in exported.inputs.leaves] == ["eta", "theta"]
    compiled.example_args(lambda: args)
    assert describe_entry(compile_sides(compiled, compiled.examples, {}, run=True))


def test_a_static_first_argument_is_not_what_is_differentiated() -> None:
    compiled = mixflow.compile(lambda model, eta: steps(eta, model), static_argnums=0)
    report = compiled.report(CLOSED, X)
    assert report.target == "as written"
