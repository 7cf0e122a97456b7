"""`verify=True`: right programs pass, wrong ones raise."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_close
from support import compiled as rewritten

import mixflow
from mixflow.errors import VerificationError
from mixflow.runtime.verify import Verified, max_relative_error, nudge, verify_results

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


@pytest.mark.parametrize(
    ("dtype", "passes", "fails"),
    [
        (jnp.float64, 1e-11, 1e-6),
        (jnp.float32, 1e-4, 1e-1),
        (jnp.bfloat16, 2e-2, 1.0),
        (jnp.float16, 1e-2, 1.0),
        (jnp.complex128, 1e-11, 1e-6),
    ],
)
def test_tolerances_follow_the_precision(dtype, passes, fails):
    x = X.astype(dtype)
    close, far = (x * jnp.asarray(1 + error, dtype) for error in (passes, fails))
    found = verify_results(close, x, x)
    assert isinstance(found, Verified)
    assert found.dtype == jnp.dtype(dtype).name
    with pytest.raises(VerificationError):
        verify_results(far, x, x)


def test_a_leaf_of_lower_precision_is_judged_by_its_own():
    # The single-precision leaf is right to single precision; the other is exact.
    expected = {"wide": X, "narrow": X.astype(jnp.float32)}
    result = {"wide": X, "narrow": X.astype(jnp.float32) * jnp.float32(1 + 1e-6)}
    verify_results(result, expected, expected)
    expected = {"wide": X.astype(jnp.float32), "narrow": X.astype(jnp.bfloat16)}
    result = {"wide": X.astype(jnp.float32), "narrow": X.astype(jnp.bfloat16) * 1.01}
    verify_results(result, expected, expected)


def test_a_sensitive_program_is_given_room():
    def sensitive(x):
        return jnp.sin(x * 1e12)

    other = sensitive(jnp.nextafter(X, jnp.inf))
    assert max_relative_error(other, sensitive(X)) > 1e-6
    verify_results(other, sensitive(X), sensitive(nudge(X)))


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
