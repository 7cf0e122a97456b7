"""Floating-point operations and equations, against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from support import captures

import mixflow
from mixflow.compiler.analysis.costs import NOTHING, Cost, program_cost

A = jnp.ones((4, 8))
B = jnp.ones((8, 3))
X = jnp.ones(5)


def cost(f: Any, *args: Any) -> Cost:
    return program_cost(jax.make_jaxpr(f)(*args))


def flops(f: Any, *args: Any) -> Any:
    return cost(f, *args).flops


def known(found: Cost) -> float:
    assert found.flops is not None
    return found.flops


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda: A @ B, 2 * 4 * 8 * 3),
        (lambda: jnp.einsum("bij,bjk->bik", jnp.ones((7, 4, 8)), jnp.ones((7, 8, 3))), 7 * 192),
        (lambda: X @ X, 2 * 5),
        (lambda: jnp.outer(X, X), 25),
        (lambda: jnp.sin(A), 32),
        (lambda: jnp.sum(A), 32),
        (lambda: jnp.cumsum(A, 1), 32),
        (lambda: jax.lax.conv(jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 2, 2)), (1, 1), "VALID"),
         2 * (2 * 5 * 7 * 7) * (3 * 2 * 2)),
        (lambda: jnp.zeros((0, 3)) + 1, 0),
        (lambda: A.T.reshape(4, 8)[::-1][:2].astype(jnp.float32), 0),
    ],
)  # fmt: skip
def test_flops_of_one_operation(f, expected):
    assert jax.eval_shape(f) is not None

    def program(a):
        return (f(), a)

    assert flops(program, 0.0) == expected


def test_a_matmul_costs_what_xla_says():
    analysis: Any = jax.jit(jnp.matmul).lower(A, B).compile().cost_analysis()
    assert flops(jnp.matmul, A, B) == analysis["flops"]


def test_a_scan_costs_its_body_times_its_length():
    def body(c, _):
        return (c @ c, None)

    one = flops(lambda c: c @ c, jnp.ones((4, 4)))

    def loop(c):
        return jax.lax.scan(body, c, None, length=9)[0]

    assert flops(loop, jnp.ones((4, 4))) == 9 * one

    def nested(c):
        return jax.lax.scan(lambda c, _: (loop(c), None), c, None, length=3)[0]

    assert flops(nested, jnp.ones((4, 4))) == 27 * one

    def never(c):
        return jax.lax.scan(body, c, None, length=0)[0]

    assert flops(never, jnp.ones((4, 4))) == 0


def test_a_while_loop_has_an_unknown_cost_and_its_equations_count():
    def f(x):
        return jax.lax.while_loop(lambda c: c[0] < 3, jnp.sin, x)

    found = cost(lambda x: f(x) + 1, X)
    assert found.flops is None
    assert found.eqns >= 4
    assert flops(lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2), X) is None


def test_a_fori_loop_of_known_length_has_a_known_cost():
    assert flops(lambda x: jax.lax.fori_loop(0, 7, lambda i, c: jnp.sin(c), x), X) is not None
    known = flops(lambda x: jax.lax.fori_loop(0, 7, lambda i, c: jnp.sin(c), x), X)
    assert known >= 7 * 5


def test_a_cond_costs_its_worst_branch():
    def f(p, x):
        return jax.lax.cond(p, jnp.sin, lambda x: jnp.sin(jnp.cos(jnp.tan(x))), x)

    assert flops(f, True, X) == 3 * 5


def test_a_cond_with_one_unknown_branch_is_unknown():
    def loop(x):
        return jax.lax.while_loop(lambda c: c[0] < 3, jnp.sin, x)

    assert flops(lambda p, x: jax.lax.cond(p, loop, jnp.sin, x), True, X) is None


def test_nested_calls_cost_what_they_hold():
    plain = flops(lambda x: jnp.sin(x) * 2, X)
    assert flops(jax.jit(lambda x: jnp.sin(x) * 2), X) == plain
    assert flops(jax.checkpoint(lambda x: jnp.sin(x) * 2), X) == plain


def test_dead_code_costs_nothing():
    def f(a, b):
        jnp.matmul(a, b)
        jax.jit(jnp.matmul)(a, b)
        return jnp.sin(a)

    assert cost(f, A, B) == Cost(32.0, 1, transcendentals=32.0)


def test_recomputation_is_counted():
    def f(x):
        return jnp.sum(jnp.sin(jnp.sin(x)))

    assert flops(jax.value_and_grad(jax.checkpoint(f)), X) > flops(jax.value_and_grad(f), X)


def loss(theta, eta):
    return jnp.mean(jnp.tanh(A @ theta) ** 2) * jnp.sum(eta)


def meta_loss(eta, theta):
    def step(t, _):
        return (t - 0.1 * jax.grad(loss)(t, eta), None)

    return loss(jax.lax.scan(step, theta, None, length=6)[0], eta)


@pytest.mark.parametrize(
    "f",
    [
        loss,
        jax.grad(loss),
        jax.value_and_grad(loss),
        jax.grad(loss, argnums=(0, 1)),
        lambda theta, eta: meta_loss(eta, theta),
        lambda theta, eta: jax.grad(meta_loss)(eta, theta),
    ],
    ids=["loss", "grad", "value_and_grad", "grad of two", "meta-loss", "meta-gradient"],
)
def test_a_symbolic_derivative_costs_what_the_plain_one_does(f):
    symbolic = mixflow.compile(f, passes="cse,fuse-value-and-pullback")
    plain, traced_definition = flops(f, B, X), program_cost(symbolic.trace(B, X).jaxpr).flops
    assert traced_definition == pytest.approx(plain, rel=0.02)


def test_an_unfused_value_and_pullback_run_the_function_twice():
    captured = captures(jax.value_and_grad(loss), B, X).jaxpr
    forward = flops(loss, B, X)
    assert known(program_cost(captured)) >= flops(jax.value_and_grad(loss), B, X) + 0.8 * forward


def test_the_cost_of_an_optimised_meta_gradient_is_known():
    optimised = mixflow.compile(jax.grad(meta_loss)).trace(X, B).jaxpr
    plain = flops(jax.grad(meta_loss), X, B)
    # Three passes over the loss for its Hessian-vector product, one to step forward; nothing more.
    assert plain < known(program_cost(optimised)) < 2 * plain


def test_the_cost_of_a_derivative_over_a_mesh_s_axis_is_known():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    spec = PartitionSpec("d")

    def body(a):
        return jax.grad(lambda t: jax.lax.pmean(jnp.sum(jnp.sin(t)), "d"))(a)

    f = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec)
    found = program_cost(captures(f, A).jaxpr)
    assert known(found) >= 2 * A.size
    assert found.eqns > 1


def test_sums_and_multiples_of_costs():
    one = Cost(3.0, 2, 5.0, 1.0)
    assert one + NOTHING == one
    assert one + Cost(None, 5, 1.0, None) == Cost(None, 7, 6.0, None)
    assert one.times(4) == Cost(12.0, 2, 20.0, 4.0)
    assert one.times(None) == Cost(None, 2, None, None)


def test_exponentials_and_their_like_are_counted_beside_the_flops():
    def step(x, _):
        return jnp.tanh(x) * jax.nn.sigmoid(x) + jnp.sqrt(x) / 2, None

    assert cost(step, X, None).transcendentals == 2 * 5
    assert cost(lambda x: jax.lax.scan(step, x, length=7), X).transcendentals == 7 * 2 * 5
    assert cost(lambda p, x: jax.lax.cond(p, jnp.exp, jnp.square, x), True, X).transcendentals == 5


def test_what_is_fused_moves_no_bytes():
    cost = program_cost(jax.make_jaxpr(lambda a: jnp.sin(a) * 2.0 + a)(jnp.ones((8, 8))))
    assert cost.bytes == 0.0
    cast = program_cost(jax.make_jaxpr(lambda a: a.astype(jnp.bfloat16) * 2)(jnp.ones((8, 8))))
    assert cast.bytes == 0.0
    found = program_cost(jax.make_jaxpr(lambda a: jnp.sin(a @ a))(jnp.ones((8, 8), jnp.float32)))
    assert found.bytes == 3 * 4 * 64
