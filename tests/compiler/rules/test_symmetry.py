"""`mixflow.check_symmetry`: evidence on whether a reverse-mode program is a gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import mixflow

X = jnp.array([0.5, -1.5, 2.0])


@jax.custom_vjp
def scaled_backward(x):
    return jnp.sin(x)


# Right up to a factor that depends on the point: not the gradient of anything.
scaled_backward.defvjp(lambda x: (jnp.sin(x), x), lambda x, bar: (bar * jnp.cos(x) * jnp.flip(x),))


@jax.custom_vjp
def reversed_gradient(x):
    return x * 1.0


reversed_gradient.defvjp(lambda x: (x * 1.0, None), lambda _, bar: (-bar,))


@jax.custom_vjp
def clipped_gradient(x):
    return x * 1.0


clipped_gradient.defvjp(lambda x: (x * 1.0, None), lambda _, bar: (jnp.clip(bar, -10.0, 10.0),))


@jax.custom_jvp
def right_rule(x):
    return jnp.sin(x)


@right_rule.defjvp
def _right_rule_jvp(primals, tangents):
    return jnp.sin(primals[0]), jnp.cos(primals[0]) * tangents[0]


SYMMETRIC = {
    "elementary": lambda x: jnp.sum(jnp.tanh(x) ** 3),
    "several outputs": lambda x: {"a": jnp.sin(x), "b": jnp.outer(x, x)},
    "softmax": lambda x: jax.nn.logsumexp(x) + jax.nn.softmax(x),
    "right custom rule": lambda x: jnp.sum(right_rule(x) ** 2),
    "matrix": lambda x: jnp.linalg.slogdet(jnp.outer(x, x) + jnp.eye(3))[1],
    "stop_gradient on a constant": lambda x: jnp.sum(x * jax.lax.stop_gradient(X)),
    "stop_gradient": lambda x: jnp.sum((x**2 + jax.lax.stop_gradient(jnp.exp(x) - x**2)) ** 2),
    "scan": lambda x: jax.lax.scan(lambda c, a: (jnp.sin(c * a), c), x[0], x)[0],
    "complex": lambda x: jnp.abs(jnp.fft.fft(x)) ** 2,
}
ASYMMETRIC = {
    "scaled backward": lambda x: jnp.sum(scaled_backward(x) ** 2),
    "reversed": lambda x: jnp.sum(jnp.sin(reversed_gradient(x)) * x),
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_a_true_gradient_is_symmetric(name):
    found = mixflow.check_symmetry(SYMMETRIC[name], X)
    assert found.symmetric, found
    assert 0 <= found.max_rel_asymmetry <= found.tolerance < 1e-6


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_what_is_no_gradient_is_not(name):
    found = mixflow.check_symmetry(ASYMMETRIC[name], X)
    assert not found.symmetric, found
    assert found.max_rel_asymmetry > 1e-3


def test_a_clipped_gradient_looks_symmetric_below_its_threshold():
    def f(x):
        return jnp.sum(jnp.sin(clipped_gradient(x)))

    assert mixflow.check_symmetry(f, X).symmetric
    assert not mixflow.check_symmetry(lambda x: 100.0 * f(x), X).symmetric


def test_pytrees_integers_and_keys_among_the_arguments():
    def f(params, n, key):
        return jnp.sum(params["w"] ** n * jax.random.normal(key, (3,))) + params["b"]

    args = ({"w": X, "b": 0.5}, 3, jax.random.key(0))
    assert mixflow.check_symmetry(f, *args).symmetric


def test_complex_arguments():
    assert mixflow.check_symmetry(lambda z: jnp.abs(z) ** 2, X + 1j * jnp.cos(X)).symmetric

    def holomorphic(z):
        return jnp.sin(z) * z

    assert mixflow.check_symmetry(holomorphic, X + 1j * jnp.cos(X)).symmetric


def test_single_precision():
    found = mixflow.check_symmetry(SYMMETRIC["elementary"], X.astype(jnp.float32))
    assert found.symmetric
    assert found.tolerance > 1e-6
    assert not mixflow.check_symmetry(ASYMMETRIC["reversed"], X.astype(jnp.float32)).symmetric


def test_the_same_seed_gives_the_same_answer_and_another_one_another():
    f = ASYMMETRIC["reversed"]
    one, again = mixflow.check_symmetry(f, X, seed=1), mixflow.check_symmetry(f, X, seed=1)
    assert one == again
    assert one != mixflow.check_symmetry(f, X, seed=2)
    more = mixflow.check_symmetry(f, X, seed=1, samples=8)
    assert more.max_rel_asymmetry > 0


def test_a_value_that_is_not_finite_is_no_evidence():
    found = mixflow.check_symmetry(lambda x: jnp.sum(jnp.sqrt(x)), jnp.array([-1.0, 2.0]))
    assert not found.symmetric


def test_nothing_to_differentiate():
    with pytest.raises(ValueError, match="no argument"):
        mixflow.check_symmetry(lambda n: n * 2, 3)


def test_a_function_that_is_compiled_already():
    assert mixflow.check_symmetry(mixflow.compile(SYMMETRIC["elementary"]), X).symmetric


def test_the_answer_is_plain_data():
    found = mixflow.check_symmetry(SYMMETRIC["elementary"], X)
    assert list(map(type, vars(found).values())) == [bool, float, float]
    assert found
    assert not mixflow.check_symmetry(ASYMMETRIC["reversed"], X)
