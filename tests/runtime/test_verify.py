"""`verify=True`: right programs pass, wrong ones raise."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import assert_close
from support import compiled as rewritten

import mixflow
from mixflow.errors import VerificationError
from mixflow.runtime.verification.noise import MovedRoundings
from mixflow.runtime.verification.results import Verified, max_relative_error, verify_results

X = jnp.array([0.5, -1.5, 2.0])
THETA = jnp.array([0.3, 0.2, -0.4])


def loss(theta, eta):
    return jnp.sum(jnp.tanh(theta * eta) ** 2)


@jax.custom_vjp
def straight_through(x):
    return jnp.sin(x) * x


straight_through.defvjp(lambda x: (jnp.sin(x) * x, x), lambda x, bar: (bar * jnp.exp(jnp.flip(x)),))


def estimator_loss(theta, eta):
    return jnp.sum(straight_through(theta * eta) ** 2)


def meta_gradient(inner):
    def meta(eta, theta=THETA, rate=0.1):
        return jnp.sum((theta - rate * jax.grad(inner)(theta, eta)) ** 2)

    return jax.value_and_grad(meta)


def wrong(**options):
    """A program whose result really changes: the estimator is no gradient, and vouched for."""
    return rewritten(meta_gradient(estimator_loss), assume_symmetric="all", verify=True, **options)


def test_a_right_program_passes():
    f = meta_gradient(loss)
    assert_close(mixflow.compile(f, verify=True)(X), jax.jit(f)(X))


def test_a_suspect_program_that_is_left_alone_passes():
    f = meta_gradient(estimator_loss)
    assert_close(mixflow.compile(f, verify=True)(X), jax.jit(f)(X))


def test_the_wrong_program_is_wrong():
    expected = jax.jit(meta_gradient(estimator_loss))(X)
    result = rewritten(meta_gradient(estimator_loss), assume_symmetric="all")(X)
    assert max_relative_error(result, expected) > 1e-2


def test_a_wrong_program_raises():
    with pytest.raises(VerificationError, match="differs from the original") as caught:
        wrong()(X)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, mixflow.MixflowError)


def test_a_wrong_program_raises_on_every_call():
    f = wrong()
    for _ in range(2):
        with pytest.raises(VerificationError):
            f(X)


def test_a_wrong_program_raises_in_single_precision():
    with pytest.raises(VerificationError):
        wrong()(X.astype(jnp.float32), THETA.astype(jnp.float32))


def test_a_wrong_program_raises_with_python_scalars_among_its_arguments():
    with pytest.raises(VerificationError):
        wrong()(X.astype(jnp.float32), THETA.astype(jnp.float32), 0.1)


def test_a_wrong_program_raises_with_static_arguments():
    with pytest.raises(VerificationError):
        wrong(static_argnums=2)(X, THETA, 0.1)
    with pytest.raises(VerificationError):
        wrong(static_argnames="rate")(X, THETA, rate=0.1)


def test_a_wrong_program_raises_with_donated_arguments():
    with pytest.raises(VerificationError):
        wrong(donate_argnums=0)(jnp.array(X))


def test_a_right_program_passes_with_donated_arguments():
    f = mixflow.compile(meta_gradient(loss), verify=True, donate_argnums=0)
    x = jnp.array(X)
    assert_close(f(x), jax.jit(meta_gradient(loss))(X))
    assert x.is_deleted()


@pytest.mark.parametrize(
    "edge",
    [lambda eta: jnp.arcsin(eta[0] + 0.5), lambda eta: jnp.sum(jnp.sqrt(0.5 - eta[:1]))],
    ids=["arcsin", "sqrt"],
)
def test_a_wrong_program_raises_at_the_edge_of_a_domain(edge):
    # One unit in the last place further there is only NaN: that excuses nothing.
    def f(eta):
        return meta_gradient(estimator_loss)(eta), edge(jax.lax.stop_gradient(eta))

    with pytest.raises(VerificationError):
        rewritten(f, assume_symmetric="all", verify=True)(X)


def test_a_wrong_program_raises_where_an_integer_result_jumps():
    # One unit in the last place further the integer is another: that excuses nothing either.
    def f(eta):
        return meta_gradient(estimator_loss)(eta), (eta[0] > 0.5).astype(int)

    with pytest.raises(VerificationError):
        rewritten(f, assume_symmetric="all", verify=True)(X)


def test_nans_in_both_are_equal_and_in_one_are_not():
    def f(eta):
        return jnp.log(eta), meta_gradient(loss)(eta)

    with jax.debug_nans(False):
        assert np.isnan(mixflow.compile(f, verify=True)(X)[0][1])
    nan = jnp.array([1.0, jnp.nan])
    assert max_relative_error(nan, nan) == 0
    assert max_relative_error(nan, jnp.ones(2)) == np.inf
    assert max_relative_error(jnp.ones(2), nan) == np.inf


def test_infinities_are_equal_by_sign():
    inf = jnp.array([1.0, jnp.inf])
    assert max_relative_error(inf, inf) == 0
    assert max_relative_error(-inf, inf) == np.inf


def test_another_dtype_or_shape_is_a_difference():
    assert max_relative_error(X.astype(jnp.float32), X) == np.inf
    assert max_relative_error(X[None], X) == np.inf
    assert max_relative_error(jnp.arange(3), jnp.arange(3).astype(jnp.int8)) == np.inf


def test_integers_and_keys_have_to_be_equal():
    key = jax.random.key(0)
    assert max_relative_error((jnp.arange(3), key), (jnp.arange(3), key)) == 0
    assert max_relative_error(jnp.arange(3), jnp.arange(3) + 1) == np.inf
    assert max_relative_error(jax.random.key(1), key) == np.inf


def test_an_error_is_relative_to_the_leaf_and_a_zero_leaf_to_the_largest():
    assert max_relative_error({"a": X * (1 + 1e-6)}, {"a": X}) == pytest.approx(1e-6, rel=1e-3)
    a, b = (jnp.array([1e-12]), X), (jnp.array([0.0]), X)
    assert max_relative_error(a, b) == pytest.approx(1e-12 / 2)


def test_empty_and_missing_leaves():
    assert max_relative_error((), ()) == 0
    assert max_relative_error(jnp.zeros((0, 2)), jnp.zeros((0, 2))) == 0
    assert max_relative_error({"a": None, "b": 1.0}, {"a": None, "b": 1.0}) == 0


def no_noise(expected):
    """An original that moving its roundings does nothing to."""
    return lambda seed, ulps: expected


def noise_of(f, *args):
    return functools.partial(MovedRoundings(f, {}), args, {})


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "bfloat16", "float16", "complex128", "complex64"]
)
def test_without_noise_a_few_units_of_a_leafs_own_type_are_allowed(dtype):
    unit = jnp.finfo(dtype).eps
    x = jnp.array([0.5, -1.5, 2.0], dtype)
    close, far = (x.at[2].mul(1 + factor * unit) for factor in (2, 8))
    found = verify_results({"a": X, "b": close}, {"a": X, "b": x}, no_noise({"a": X, "b": x}))
    assert isinstance(found, Verified)
    assert found.dtype == max("float64", dtype, key=lambda name: jnp.finfo(name).bits)
    with pytest.raises(VerificationError, match=f"dtype {dtype}"):
        verify_results({"a": X, "b": far}, {"a": X, "b": x}, no_noise({"a": X, "b": x}))


def test_noise_is_not_asked_for_where_results_are_close():
    def never(seed, ulps):
        raise AssertionError

    verify_results({"a": X, "n": jnp.arange(3)}, {"a": X, "n": jnp.arange(3)}, never)


def test_a_difference_of_ten_times_the_noise_is_allowed_and_no_more():
    def noise(seed, ulps):
        return X * (1 + ulps * 1e-9)

    verify_results(X * (1 + 0.9e-8), X, noise)
    with pytest.raises(VerificationError, match=r"and 1\.00e-08 is allowed; look at"):
        verify_results(X * (1 + 1.1e-8), X, noise)


def test_the_noise_of_one_leaf_excuses_nothing_in_another():
    expected = {"quiet": X, "noisy": X}

    def noise(seed, ulps):
        return {"quiet": X, "noisy": X * (1 + ulps * 1e-6)}

    verify_results({"quiet": X, "noisy": X * (1 + 1e-6)}, expected, noise)
    with pytest.raises(VerificationError):
        verify_results({"quiet": X * (1 + 1e-6), "noisy": X}, expected, noise)


def test_a_sensitive_program_is_given_room():
    def sensitive(x):
        return jnp.sin(x * 1e12)

    other = sensitive(jnp.nextafter(X, jnp.inf))
    assert max_relative_error(other, sensitive(X)) > 1e-6
    verify_results(other, sensitive(X), noise_of(sensitive, X))


UNTELLABLE = {
    "a branch": lambda x: jnp.where(jnp.sum(x * x) > 6.5, 1.0, 2.0) * x,
    "an integer": lambda x: jnp.floor(x * x * 4).astype(int),
    "a NaN": lambda x: jnp.sqrt(6.5 - jnp.sum(x * x)) + x,
    "chaos": lambda x: jnp.sin(x * 1e18),
}


@pytest.mark.parametrize("name", UNTELLABLE)
def test_noise_that_cannot_be_told_is_named_and_allows_nothing(name):
    f = UNTELLABLE[name]
    expected = jax.jit(f)(X)
    result = expected + 1 if name == "an integer" else expected * (1 + 1e-9)
    with pytest.raises(VerificationError, match="noise cannot be told from a fault here"):
        verify_results(result, expected, noise_of(f, X))
    verify_results(expected, expected, noise_of(f, X))


def several_leaves(eta, x):
    """Leaves of many kinds and sizes, each but the last three a meta-gradient's."""

    def meta(eta, scale):
        def step(t, _):
            return t - 0.1 * jax.grad(loss)(t, eta["a"] * eta["small"]), None

        t, _ = jax.lax.scan(step, THETA, length=3)
        return jnp.sum(t**2) * scale + 1e-12 * jnp.sum(eta["b"] ** 3) + 0 * jnp.sum(eta["zero"])

    value, gradient = jax.value_and_grad(meta)(eta, x[0] ** 2)
    return {
        "value": value,
        "gradient": gradient,
        "complex": jax.lax.complex(value, 1e-3 * value),
        "count": jnp.arange(3) * x.astype(int),
        "key": jax.random.split(jax.random.key(0), 2),
        "mask": x > 0,
    }


SEVERAL = ({"a": X, "b": X, "small": jnp.float64(1.1), "zero": X}, X)


def planted(leaf):
    """A leaf with a fault, of 1e-7 in its largest entry where it has a size."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf[::-1]
    if leaf.dtype == bool:
        return ~leaf
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf.at[-1].add(1)
    flat = leaf.ravel()
    largest = jnp.argmax(jnp.abs(flat))
    fault = jnp.where(flat[largest] == 0, 1e-7, 1e-7 * flat[largest])
    turned = 1j if jnp.iscomplexobj(leaf) else 1
    return flat.at[largest].add(fault * turned).reshape(leaf.shape)


def test_a_fault_of_1e_7_in_any_leaf_never_passes_in_float64():
    expected, noise = jax.jit(several_leaves)(*SEVERAL), noise_of(several_leaves, *SEVERAL)
    leaves, tree = jax.tree.flatten(expected)
    for place, leaf in enumerate(leaves):
        faulty = jax.tree.unflatten(tree, [*leaves[:place], planted(leaf), *leaves[place + 1 :]])
        with pytest.raises(VerificationError, match="look at what the report declined"):
            verify_results(faulty, expected, noise)


def test_the_same_leaves_pass_without_a_fault():
    rewritten(several_leaves, verify=True)(*SEVERAL)


def in_precision(dtype, computed_in, optimizer, steps=4):
    """A meta-gradient whose losses compute in one precision, between values of another."""
    keys = jax.random.split(jax.random.key(1), 2)
    theta = {
        "w": (0.4 * jax.random.normal(keys[0], (4, 4))).astype(dtype),
        "dead": jnp.zeros(2, dtype),
    }
    x = jax.random.normal(keys[1], (8, 4)).astype(dtype)

    def inner(theta, eta):
        hidden = jnp.tanh(x.astype(computed_in) @ theta["w"].astype(computed_in))
        far = jnp.mean((hidden.astype(dtype) - jnp.sin(x)) ** 2, -1)
        return jnp.mean(jax.nn.softplus(eta) * far) + 0 * jnp.sum(theta["dead"])

    def meta(eta):
        def step(carry, _):
            theta, state = carry
            updates, state = optimizer.update(jax.grad(inner)(theta, eta), state, theta)
            return (optax.apply_updates(theta, updates), state), None

        (last, _), _ = jax.lax.scan(step, (theta, optimizer.init(theta)), length=steps)
        return inner(last, eta)

    return jax.value_and_grad(meta), jnp.zeros(8, dtype)


ADAM = optax.adam(1e-2)
ADAM_AT_ZERO = optax.adam(1e-2, eps=0, eps_root=1e-30)  # √v of about 1e-15 for what never moves


@pytest.mark.parametrize(
    ("dtype", "computed_in", "optimizer", "steps"),
    [
        ("float16", "float16", optax.sgd(0.1), 4),
        ("bfloat16", "bfloat16", optax.sgd(0.1), 4),
        ("float32", "float16", optax.sgd(0.1), 4),
        ("float32", "bfloat16", ADAM, 4),
        ("float32", "float32", ADAM, 64),
        ("float64", "float64", ADAM_AT_ZERO, 64),
    ],
)
def test_right_results_pass_in_every_precision(dtype, computed_in, optimizer, steps):
    f, eta = in_precision(dtype, computed_in, optimizer, steps)
    rewritten(f, verify=True)(eta)


@pytest.mark.parametrize("computed_in", ["float16", "bfloat16"])
def test_narrow_computing_between_wide_values_is_judged_by_its_own_precision(computed_in):
    f, eta = in_precision("float32", computed_in, optax.sgd(0.1))
    expected = jax.jit(f)(eta)
    unit = float(jnp.finfo(computed_in).eps)

    def off_by(error):
        value, gradient = expected
        return value, gradient * (1 + error)

    verify_results(off_by(unit / 4), expected, noise_of(f, eta))
    with pytest.raises(VerificationError):
        verify_results(off_by(100 * unit), expected, noise_of(f, eta))


def test_the_words_for_a_report():
    assert Verified(0.0, "float32").words == "the results are equal"
    words = "results differ by at most 2.5e-07 relative (float32)"
    assert Verified(2.5e-7, "float32").words == words


def test_a_report_says_so_where_results_are_equal():
    report = mixflow.compile(lambda x: x * 2).report(X, verify=True)
    assert "verified: the results are equal\n" in str(report)
    assert "verified: the results are equal\n" in report.to_markdown()


def test_verified_calls_work_under_transformations_and_with_keywords():
    f = mixflow.compile(functools.partial(meta_gradient(loss)), verify=True)
    assert_close(jax.jit(f)(X), jax.jit(meta_gradient(loss))(X))
    assert_close(f(X, rate=0.2), jax.jit(meta_gradient(loss))(X, rate=0.2))
