"""The table of primitives: what it leaves out, and what it says of derivatives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import jax.scipy.special
import pytest
from jax import lax
from support import assert_close, assert_same_meta_gradient, captures, differentiands

import mixflow
from mixflow.compiler.primitives import TABLE

KEYS = jax.random.split(jax.random.key(0), 3)
X = jax.random.uniform(KEYS[0], (3, 4), minval=0.2, maxval=0.8)
SQUARE = jax.random.normal(KEYS[1], (3, 3)) + 3 * jnp.eye(3)
Z = X + 1j * jnp.cos(X)

NOT_COVERED = {
    "programs": {"cond", "jit", "scan", "while", "remat2", "remat_opt", "eval_jaxpr", "composite"},
    "rules given by hand": {"custom_linear_solve", "custom_vmap_call", "linear_call"}
    | {"call_hi_primitive"},
    "a triangle or a phase": {"cholesky", "eig", "eigh", "qr", "svd"},
    "mutable": {"accum_grad_in_ref", "addupdate", "box_get", "box_set", "empty_ref", "free_ref"}
    | {"freeze", "get", "log_extend", "log_read", "new_box", "new_log", "new_ref", "run_state"}
    | {"swap"},
    "called back": {"debug_callback", "debug_print", "ffi_call", "io_callback", "pure_callback"}
    | {"dce_sink", "check"},
    "experimental": {"from_edtype", "to_edtype", "tie", "stage", "reduce", "reduce_window"}
    | {"ragged_all_to_all", "reduced_vary_cast", "reduced_vary_cast_p", "vary_unreduced_cast"}
    | {"vary_unreduced_cast_p", "relayout", "pbroadcast_dynamic"}
    | {"with_memory_space_constraint", "spsolve", "todense", "program_order"},
}
"""Primitives with a derivative that have no row, by the reason: theirs is taken for suspect."""


def test_what_falls_to_the_default() -> None:
    known = TABLE.keys() | set().union(*NOT_COVERED.values())
    # Other tests import more of JAX, such as its kernels, and with them more primitives.
    listing = (
        "import mixflow; from jax.interpreters import ad; "
        "print(*(primitive.name for primitive in ad.primitive_jvps))"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    )
    names = set(fresh.stdout.split())
    ours = {name for name in names if name.startswith("mixflow_")}
    sparse = {name for name in names if name.startswith(("bcoo_", "bcsr_", "coo_", "csr_"))}
    assert names - known - ours - sparse == set()
    assert TABLE.keys().isdisjoint(set().union(*NOT_COVERED.values()))


def of(f: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
    return (f, *args)


TRUE: dict[str, tuple[Any, ...]] = {
    **{
        name: of(getattr(lax, name), X)
        for name in (
            *("exp", "exp2", "expm1", "log", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh"),
            *("asin", "acos", "atan", "asinh", "atanh", "logistic", "erf", "erfc", "erf_inv"),
            *("sqrt", "rsqrt", "cbrt", "square", "abs", "lgamma", "digamma"),
            *("bessel_i0e", "bessel_i1e", "neg", "cumsum", "cumprod", "cummax", "cummin"),
        )
    },
    "acosh": of(lambda x: lax.acosh(1 + x), X),
    "cumlogsumexp": of(lax.cumlogsumexp, X),
    "pow": of(lax.pow, X, X[::-1]),
    "integer_pow": of(lambda x: x**3, X),
    "atan2": of(lax.atan2, X, X[::-1]),
    "rem": of(lambda x: lax.rem(x, 0.3), X),
    "div": of(lax.div, X, X[::-1]),
    "mul": of(lax.mul, X, X[::-1]),
    "max": of(lax.max, X, X[::-1]),
    "clamp": of(lambda x: lax.clamp(0.3, x, 0.6), X),
    "dot_general": of(jnp.matmul, X, X.T),
    "conv_general_dilated": of(
        lambda x, w: lax.conv(x[None, None], w[None, None], (1, 1), "SAME"), X, X[:2, :2]
    ),
    "reduce_prod": of(lambda x: jnp.prod(x, 1), X),
    "reduce_max": of(lambda x: jnp.max(x, 1), X),
    "reduce_window_max": of(
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "SAME"), X
    ),
    "reduce_window_sum": of(
        lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "SAME"), X
    ),
    "sort": of(lambda x: jnp.sort(x, 1) * X, X),
    "top_k": of(lambda x: lax.top_k(x, 2)[0], X),
    "gather": of(lambda x: x[jnp.array([2, 0, 0])], X),
    "scatter": of(lambda x, y: x.at[jnp.array([0, 2])].set(y[:2]), X, X[::-1]),
    "scatter-add": of(lambda x, y: x.at[jnp.array([0, 0])].add(y[:2]), X, X[::-1]),
    "scatter-mul": of(
        lambda x, y: x.at[jnp.array([0, 2])].mul(y[:2], unique_indices=True), X, X[::-1]
    ),
    "scatter-min": of(lambda x, y: x.at[jnp.array([0, 2])].min(y[:2]), X, X[::-1]),
    "dynamic_slice": of(lambda x: lax.dynamic_slice(x, (1, 1), (2, 2)), X),
    "dynamic_update_slice": of(
        lambda x, y: lax.dynamic_update_slice(x, y[:2, :2], (1, 1)), X, X[::-1]
    ),
    "select_n": of(lambda x: jnp.where(x > 0.5, x**2, jnp.sin(x)), X),
    "triangular_solve": of(
        lambda a, b: jax.scipy.linalg.solve_triangular(a, b[:, :2], lower=True), SQUARE, X
    ),
    "lu": of(lambda a: lax.linalg.lu(a)[0], SQUARE),
    "svd": of(lambda a: jnp.linalg.svd(a, compute_uv=False), SQUARE),
    "qr": of(lambda a: jnp.linalg.qr(a)[1] ** 2, SQUARE),
    "fft": of(lambda x: jnp.abs(jnp.fft.fft(x)) ** 2, X),
    "complex products": of(lambda z: z @ z.T * jnp.exp(z[:, :3]), Z),
    "complex parts": of(lambda z: jnp.abs(z) ** 2 + z.real * jnp.conj(z).imag, Z),
    "complex lu": of(lambda a: lax.linalg.lu(a)[0], SQUARE + 1j * jnp.cos(SQUARE)),
}
"""Rows that say that a derivative is true, each at a random point."""


@pytest.mark.parametrize("name", TRUE)
def test_a_true_derivative_is_symmetric(name: str) -> None:
    f, *args = TRUE[name]
    found = mixflow.check_symmetry(lambda *args: jax.tree.map(jnp.sin, f(*args)), *args, samples=2)
    assert found.symmetric, found


def hermitian(z: Any) -> Any:
    return z + jnp.conj(z.T) + 6 * jnp.eye(3)


TRIANGLE = jnp.array([[2.0, 0.3, -0.2], [0.3, 3.0, 0.5], [-0.2, 0.5, 4.0]])
UNTRUE: dict[str, Callable[[Any], Any]] = {
    "cholesky": lambda a: jnp.sum(jnp.sin(lax.linalg.cholesky(a, symmetrize_input=False))),
    "cho_solve": lambda a: jnp.sum(
        jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), jnp.arange(3.0))
    ),
    "eigh": lambda a: jnp.sum(jnp.sin(jnp.linalg.eigh(a, symmetrize_input=False)[0])),
    "complex svd": lambda a: jnp.sum(
        jnp.real(jnp.linalg.svd(a + 1j * jnp.triu(a))[0][:, 0]) ** 2 * jnp.arange(3.0)
    ),
    "complex eigh": lambda a: jnp.sum(
        jnp.real(jnp.linalg.eigh(hermitian(a + 1j * jnp.triu(a)))[1]) ** 2 @ jnp.arange(3.0)
    ),
    "solve": lambda a: jnp.sum(jnp.sin(jnp.linalg.solve(a, jnp.arange(3.0)))),
}


@pytest.mark.parametrize("name", UNTRUE)
def test_other_primitives_get_the_transposed_rule(name: str) -> None:
    def outer(eta: Any) -> Any:
        gradient = jax.grad(lambda a: UNTRUE[name](a * eta) * jnp.sum(eta))(TRIANGLE)
        return jnp.sum(jnp.sin(TRIANGLE - 0.1 * gradient))

    assert_same_meta_gradient(outer, jnp.array([1.0, 1.1, 0.9]))
    passes = "forward-over-reverse,reverse-over-forward"
    text = mixflow.compile(jax.grad(outer), passes=passes).ir(jnp.ones(3))
    assert text.count("[transposed rule]") == 1


OF_CLASSES: dict[str, Callable[[Any], Any]] = {
    "SearchSorted": lambda x: jnp.interp(x, jnp.array([0.0, 0.4, 1.0]), jnp.array([0.1, 0.9, 0.4])),
    "Nonzero": lambda x: x[jnp.nonzero(x > 0.5, size=2)],
    "Ldexp": lambda x: jnp.ldexp(x, 2),
    "Frexp": lambda x: jnp.frexp(x)[0],
}


of_classes = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="JAX 0.12 is the first to write primitives as classes"
)


@of_classes
@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("rule", ["forward-over-reverse", "reverse-over-forward"])
def test_primitives_that_jax_writes_as_classes(name: str, rule: str) -> None:
    def outer(eta: Any) -> Any:
        def loss(x: Any) -> Any:
            return jnp.sum(jnp.sin(OF_CLASSES[name](x * x)) * eta[0]) + jnp.sum(eta * x**2)

        return jnp.sum(jnp.sin(X - 0.1 * jax.grad(loss)(X)))

    compiled = mixflow.compile(jax.value_and_grad(outer), passes=rule)
    assert_close(compiled(X[1]), jax.jit(jax.value_and_grad(outer))(X[1]))
    mark = {"forward-over-reverse": "symmetric rule", "reverse-over-forward": "transposed rule"}
    assert compiled.ir(X[1]).count(f"[{mark[rule]}]") == 1


PROGRAMS = {
    *("CheckpointName", "CheckpointNameFwd", "CustomJVPTraced", "CustomRoot", "CustomVJPTraced"),
    *("Einsum", "OptRemat", "PrimalLeftTangentRight", "RematTraced", "Scan3", "_RootLinearMap"),
}
"""Classes that hold a program or a rule of the user's, or that JAX makes under its flags alone."""


@of_classes
def test_every_class_of_jax_has_a_row() -> None:
    listing = (
        "import jax.numpy; from jax.experimental import hijax; "
        "print(*(one.__name__ for one in hijax.HiPrim.__subclasses__()))"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    )
    assert set(fresh.stdout.split()) - TABLE.keys() == PROGRAMS


def test_what_has_no_second_derivative_in_a_parameter() -> None:
    """Plain JAX differentiates the density in the shape, not the function in it twice."""

    def outer(shape: Any) -> Any:
        def loss(x: Any) -> Any:
            return jnp.sum(jax.scipy.special.gammainc(shape, x**2 + 0.5))

        return jnp.sum(jnp.sin(X[0, :2] - 0.1 * jax.grad(loss)(X[0, :2])))

    assert_same_meta_gradient(outer, jnp.array([1.5, 2.0]))


@pytest.mark.parametrize("weights", [lambda theta, eta: eta, lambda theta, eta: theta * eta])
@pytest.mark.parametrize(
    ("place", "steps"),
    [
        (lambda f: f, 1),
        (jax.checkpoint, 2),
        (lambda f: lambda x, eta: lax.scan(lambda x, _: (f(x, eta), None), x, length=1)[0], 1),
    ],
    ids=["bare", "in a checkpoint", "in a scan"],
)
def test_a_parameter_in_which_there_is_one_derivative_alone(
    place: Any, steps: int, weights: Any
) -> None:
    """Plain JAX asks for no second, as what is computed from `shape` is flat. RoF would."""

    @place
    def flat(shape: Any, eta: Any) -> Any:
        def slope(shape: Any) -> Any:
            return jnp.vdot(jax.grad(lambda y: jnp.sum(jax.nn.relu(y) ** 2))(shape), eta)

        return jax.grad(slope)(jax.scipy.special.gammaincc(shape, 0.9))

    def loss(theta: Any, eta: Any) -> Any:
        return jnp.sum(flat(1.2 + theta**2, weights(theta, eta)) * jnp.sin(theta))

    def meta(eta: Any) -> Any:
        theta = X
        for _ in range(steps):
            theta = theta - jax.grad(loss)(theta, eta)
        return jnp.sum(theta**2)

    f = jax.value_and_grad(meta)
    trace = captures(f, X)
    assert any(function.soundness.obstacles for function in differentiands(trace.jaxpr))
    for passes in ("reverse-over-forward", "forward-over-reverse,reverse-over-forward"):
        assert_close(mixflow.compile(f, passes=passes)(X), jax.jit(f)(X))
