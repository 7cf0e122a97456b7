"""A program run again with its roundings moved."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_close, relative_error

from mixflow.runtime.verification.noise import MovedRoundings, nudged

X = jnp.array([0.5, -1.5, 2.0])


def moved(x, seed=0, ulps=1):
    return nudged(x, jnp.uint32(seed), jnp.uint32(ulps))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_entry_moves_by_so_many_units_up_or_down(dtype):
    x = jax.random.normal(jax.random.key(0), (1000,), dtype)
    x = x[x != jnp.round(x)]
    up = jnp.nextafter(x, jnp.full_like(x, jnp.inf) * jnp.sign(x))
    down = jnp.nextafter(x, jnp.zeros_like(x))
    ours = moved(x)
    assert ours.dtype == x.dtype
    assert bool(jnp.all((ours == up) | (ours == down)))
    assert 300 < int(jnp.sum(ours == up)) < 700
    bits = jnp.abs(
        jax.lax.bitcast_convert_type(moved(x, ulps=3), f"int{x.dtype.itemsize * 8}")
        - jax.lax.bitcast_convert_type(x, f"int{x.dtype.itemsize * 8}")
    )
    assert set(np.asarray(bits).tolist()) == {3}


def test_another_seed_is_another_pattern_and_equal_values_go_the_same_way():
    x = jax.random.normal(jax.random.key(0), (1000,))
    assert 300 < int(jnp.sum(moved(x, seed=1) == moved(x, seed=2))) < 700
    np.testing.assert_array_equal(moved(x)[:10], moved(x[:10]))


def test_both_parts_of_a_complex_number_move():
    x = jax.lax.complex(X / 3, X / 7)
    assert bool(jnp.all((moved(x).real != x.real) & (moved(x).imag != x.imag)))


@pytest.mark.parametrize(
    "x",
    [
        jnp.zeros(3),
        jnp.arange(-3.0, 3),
        jnp.array([jnp.nan, jnp.inf, -jnp.inf]),
        jnp.arange(3),
        X > 0,
        2,
        "text",
    ],
    ids=[
        "zeros",
        "small whole numbers",
        "not finite",
        "integers",
        "booleans",
        "a scalar of Python's",
        "no array",
    ],
)
def test_what_has_no_units_in_the_last_place_stays(x):
    np.testing.assert_array_equal(moved(x), x)


def test_a_large_whole_number_may_be_rounded():
    assert moved(jnp.float32(2.0**20)) != 2.0**20


def test_a_key_stays():
    key = jax.random.key(3)
    assert moved(key) is key


@jax.custom_jvp
def doubled(x):
    return x * 2.1


doubled.defjvps(lambda t, _, x: t * 2.1)


@jax.custom_vjp
def tripled(x):
    return x * 3.1


tripled.defvjp(lambda x: (tripled(x), None), lambda _, bar: (bar * 3.1,))


def counted(x):
    return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1]) * X), (0, x))


PROGRAMS = {
    "straight line": lambda x: {"a": jnp.tanh(x) @ X, "b": (x, 3, None)},
    "scan": lambda x: jax.lax.scan(lambda c, y: (jnp.sin(c + y), c * x), x[0], x, reverse=True),
    "while": counted,
    "cond": lambda x: jax.lax.switch(1, [jnp.sin, jnp.cos, jnp.tanh], x),
    "jit": jax.jit(lambda x: jnp.cumsum(x / 3)),
    "vmapped grad": jax.vmap(jax.grad(lambda x: jnp.sin(x) ** 2)),
    "checkpoint": jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x) ** 2)(x))),
    "custom rules": lambda x: (doubled(x), tripled(x)),
    "a differentiated custom rule": jax.grad(lambda x: jnp.sum(tripled(doubled(x)) ** 2)),
    "linear algebra": lambda x: jnp.linalg.solve(jnp.outer(x, x) + jnp.eye(3), x),
    "weak types": lambda x: jax.lax.scan(lambda c, _: (c * 1.5, c), 1.0, None, length=2),
    "keys": lambda x: jax.random.normal(jax.random.fold_in(jax.random.key(1), 2), (3,)) * x,
    "complex": jnp.fft.fft,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_moved_by_nothing_gives_what_it_gives(name):
    f = PROGRAMS[name]
    run = functools.partial(MovedRoundings(f, {}), (X,), {})
    expected = jax.tree.leaves(jax.jit(f)(X))
    assert_close(run(0, 0), expected, 1e-14)
    if name != "weak types":  # exact in binary
        assert 0 < relative_error(run(0, 1), expected) < 1e-13


def test_static_and_named_arguments():
    def f(x, power, *, scale):
        return scale * x**power

    run = MovedRoundings(f, {"static_argnums": (1,)})
    (result,) = run((X, 3), {"scale": 2.0}, 0, 0)
    assert_close(result, 2 * X**3)
    run = MovedRoundings(f, {"static_argnames": ("power",)})
    (result,) = run((X,), {"power": 2, "scale": 2.0}, 0, 0)
    assert_close(result, 2 * X**2)


def test_a_program_is_compiled_once_for_all_moves():
    traces = []

    def f(x):
        traces.append(x)
        return jnp.sin(x)

    run = MovedRoundings(f, {})
    for seed, ulps in ((0, 1), (1, 1), (0, 4)):
        run((X,), {}, seed, ulps)
    assert len(traces) == 1


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_the_precision_in_between_counts(narrow):
    def f(x, dtype):
        return jnp.sum(jnp.sin(x.astype(dtype)).astype(x.dtype))

    def noise(dtype):
        run = MovedRoundings(f, {"static_argnums": (1,)})
        return relative_error(run((X, dtype), {}, 0, 1), [f(X, dtype)])

    assert noise(narrow) > 1e-4
    assert noise("float64") < 1e-14


def test_a_change_to_a_narrower_type_rounds_and_one_to_a_wider_does_not():
    def f(x):
        return x.astype("float16").astype("float64")

    (result,) = MovedRoundings(f, {})((X / 3,), {}, 0, 1)
    np.testing.assert_array_equal(result, result.astype("float16"))
    assert bool(jnp.all(result != f(X / 3)))


def test_what_a_checkpoint_reruns_is_not_merged_with_its_first_run():
    run = MovedRoundings(PROGRAMS["checkpoint"], {})
    nudge = {"mixflow_seed": jnp.uint32(0), "mixflow_ulps": jnp.uint32(1)}
    assert "optimization_barrier" in run._jit.lower(X, **nudge).as_text()


def test_constants_move_where_something_is_computed_of_them():
    table = jnp.array([0.1, 0.2, 0.3])
    run = MovedRoundings(lambda n: jnp.sum(table * n), {})
    assert relative_error(run((3,), {}, 0, 1), [jnp.sum(table * 3)]) > 0
