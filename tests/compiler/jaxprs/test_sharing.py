"""Repeated code is one function that is called, and the program computes what it did."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import tree_leaves
from support import differentiands

import mixflow
from mixflow.compiler.jaxprs.sharing import NAME, with_shared_code

LAYERS, WIDTH = 6, 8
WEIGHTS = tuple(
    {
        name: jax.random.normal(jax.random.key(10 * i + j), (WIDTH, WIDTH)) / 3
        for j, name in enumerate("qko")
    }
    for i in range(LAYERS)
)
X = jax.random.normal(jax.random.key(7), (5, WIDTH))


def layer(w: Any, x: Any, mask: Any) -> Any:
    scores = (x @ w["q"]) @ (x @ w["k"]).T
    spread = jnp.exp(jnp.where(mask, scores, -9.0))
    mixed = spread / jnp.sum(spread, 1, keepdims=True) @ x
    return x + jnp.tanh(mixed @ w["o"])


def network(weights: Any, x: Any) -> Any:
    mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
    for w in weights:
        x = layer(w, x, mask)
    return jnp.mean(x**2)


def shared(function: Any, *args: Any) -> ClosedJaxpr:
    return with_shared_code(jax.make_jaxpr(function)(*args))


def calls(closed: ClosedJaxpr) -> list[Any]:
    return [eqn.params["jaxpr"] for eqn in closed.jaxpr.eqns if eqn.params.get("name") == NAME]


def same(closed: ClosedJaxpr, function: Any, *args: Any) -> None:
    expected = tree_leaves(function(*args))
    for one, other in zip(jaxpr_as_fun(closed)(*tree_leaves(args)), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_unrolled_layers_are_calls_of_one_function():
    closed = shared(network, WEIGHTS, X)
    assert len(calls(closed)) == LAYERS
    assert len({id(one) for one in calls(closed)}) == 1
    # A layer reads its weights, the mask and what the layer before gives: nothing else crosses.
    assert len(calls(closed)[0].in_avals) <= 3 + 2
    assert len(calls(closed)[0].out_avals) <= 2
    same(closed, network, WEIGHTS, X)


@pytest.mark.parametrize("derive", [jax.grad, jax.hessian], ids=["gradient", "hessian"])
def test_derivatives_and_memory_are_those_of_the_program_written_out(derive: Any):
    def loss(x: Any) -> Any:
        return network(WEIGHTS, x)

    closed = shared(loss, X)
    expected, found = derive(loss)(X), derive(lambda x: jaxpr_as_fun(closed)(x)[0])(X)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    def temporaries(function: Any) -> int:
        memory = jax.jit(jax.grad(function)).lower(X).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(lambda x: jaxpr_as_fun(closed)(x)[0]) <= 1.01 * temporaries(loss)


def equations_once(jaxpr: Any, seen: set[int]) -> int:
    """How many equations there are, if a jaxpr that stands in several of them counts once."""
    if id(jaxpr) in seen:
        return 0
    seen.add(id(jaxpr))
    inner = [one for eqn in jaxpr.eqns for one in jaxprs_in_params(eqn.params)]
    return len(jaxpr.eqns) + sum(equations_once(one, seen) for one in inner)


@pytest.mark.parametrize("derive", [jax.grad, jax.hessian], ids=["gradient", "hessian"])
def test_derivatives_of_repeated_code_are_traced_once(derive: Any):
    closed = shared(lambda x: network(WEIGHTS, x), X)
    traced = jax.make_jaxpr(derive(lambda x: jaxpr_as_fun(closed)(x)[0]))(X)
    plain = jax.make_jaxpr(derive(lambda x: network(WEIGHTS, x)))(X)
    # Six layers: the first may be another function, as the tangent of the mask is none.
    assert equations_once(traced.jaxpr, set()) <= 0.4 * equations_once(plain.jaxpr, set())


def test_gradient_steps_that_are_unrolled_are_calls():
    def meta(rate: Any) -> Any:
        x = X
        for _ in range(4):
            x = x - rate * jax.grad(lambda x: network(WEIGHTS[:2], x))(x)
        return jnp.sum(x**2)

    program = mixflow.compile(jax.value_and_grad(meta), passes="forward-over-reverse")
    outer = differentiands(program.optimised(0.1).jaxpr.jaxpr)
    assert max(len(calls(with_shared_code(function.jaxpr))) for function in outer) >= 3
    for one, other in zip(program(0.1), jax.value_and_grad(meta)(0.1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_what_a_window_reads_tells_functions_apart():
    def mixed(w: Any, x: Any) -> Any:
        for i in range(4):
            y = jnp.sin(x) if i % 2 else x
            z = x if i % 2 else jnp.sin(x)
            for _ in range(5):
                y, z = jnp.tanh(y @ w) * z, jnp.cos(z @ w) + y
            x = y - z
        return x

    w = WEIGHTS[0]["q"]
    same(shared(mixed, w, X), mixed, w, X)


def test_what_any_window_returns_all_return():
    def gathered(w: Any, x: Any) -> Any:
        kept = []
        for i in range(5):
            inside = jnp.exp(jnp.sin(x @ w) * jnp.cos(x @ w.T)) @ w
            x = jnp.tanh(jnp.sqrt(jnp.abs(inside) + 1.0) * inside - jnp.log(1.0 + x**2))
            if i == 3:
                kept.append(inside)
        return x, kept

    w = WEIGHTS[0]["q"]
    closed = shared(gathered, w, X)
    assert calls(closed)
    same(closed, gathered, w, X)


@pytest.mark.parametrize("numbers", [(0.0, -0.0), (1, True), (1.0, 2.0)], ids=str)
def test_constants_tell_functions_apart(numbers: Any):
    def scaled(x: Any) -> Any:
        for i in range(4):
            c = numbers[i // 2]
            for _ in range(8):
                x = jnp.sin(jnp.copysign(x, c)) * jnp.cos(x)
        return x

    same(shared(scaled, X), scaled, X)


def test_effects_stay_where_they_are(capfd: pytest.CaptureFixture[str]):
    def told(x: Any) -> Any:
        for i in range(4):
            for _ in range(8):
                x = jnp.sin(x) * jnp.cos(x)
            jax.debug.print("{}", i, ordered=True)
        return x

    jax.block_until_ready(jax.jit(jaxpr_as_fun(shared(told, X)))(X))
    jax.effects_barrier()
    assert capfd.readouterr().out.split() == ["0", "1", "2", "3"]


def test_equal_code_with_effects_is_not_called():
    @jax.jit
    def tells(x: Any) -> Any:
        jax.debug.print("{}", x[0, 0], ordered=True)
        return x

    def told(x: Any) -> Any:
        for _ in range(4):
            x = tells(jnp.tanh(jnp.sin(x) * jnp.cos(x) + jnp.exp(x) * jnp.sin(jnp.cos(x) - x)))
        return x

    assert not calls(shared(told, X))


def test_windows_begin_where_the_fewest_values_cross():
    def woven(w: Any, x: Any) -> Any:
        u = v = x
        for i in range(5):
            if i:  # so the first window that repeats begins where u and v cross
                u, v = jnp.sin(jnp.exp(x) @ w), jnp.cos(jnp.log1p(x * x) @ w)
            x = jnp.tanh(jnp.sqrt(jnp.abs(u)) * jnp.exp(-v) + jnp.sin(u - v))
        return x

    w = WEIGHTS[0]["q"]
    closed = shared(woven, w, X)
    assert calls(closed)
    assert {len(one.in_avals) for one in calls(closed)} == {2}  # x and w
    same(closed, woven, w, X)


def test_code_in_a_loop_is_shared_as_well():
    def looped(x: Any) -> Any:
        return jax.lax.scan(lambda x, _: (layers(x), None), x, length=2)[0]

    def layers(x: Any) -> Any:
        for w in WEIGHTS:
            x = layer(w, x, True)
        return x

    closed = shared(looped, X)
    (body,) = (eqn.params["jaxpr"] for eqn in closed.jaxpr.eqns if eqn.primitive.name == "scan")
    assert len(calls(body)) == LAYERS
    same(closed, looped, X)


@pytest.mark.parametrize("inside", [True, False], ids=["inside the mesh", "outside of it"])
def test_types_on_an_explicit_mesh_stay(inside: bool):
    mesh = jax.make_mesh((1,), ("tasks",), axis_types=(AxisType.Explicit,))

    def loss(x: Any) -> Any:
        for w in WEIGHTS:
            y, z = jnp.sin(x @ w["q"]), jnp.cos(x @ w["k"])
            x = jnp.tanh(x + y * jnp.exp(z - y)) + jnp.log(1.0 + z * z) * jnp.sqrt(1.0 + y * y)
        return jnp.sum(x**2)

    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("tasks", None)))
        closed = shared(loss, x)
        expected = jax.jit(jax.grad(loss))(x)
    assert len(calls(closed)) == LAYERS
    gradient = jax.jit(jax.grad(lambda x: jaxpr_as_fun(closed)(x)[0]))
    with jax.set_mesh(mesh) if inside else nullcontext():
        found = gradient(x)
    assert jax.typeof(found) == jax.typeof(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_little_code_stays_as_it_is():
    closed = jax.make_jaxpr(lambda x: jnp.sin(jnp.sin(jnp.sin(x))))(X)
    assert str(with_shared_code(closed)) == str(closed)
