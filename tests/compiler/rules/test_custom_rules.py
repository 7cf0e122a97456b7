"""A custom rule may be anything: without the user's word it means what it means in plain JAX."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_same_meta_gradient, captures, differentiands, suspects

from mixflow.compiler import jax_compat
from mixflow.compiler.rules import trust

ETA = jnp.array([0.3, -0.7, 1.1])
THETA = jnp.array([0.5, 1.5, -0.4])


@jax.custom_vjp
def straight_through(x: Any) -> Any:
    return jnp.round(x * 2) / 2


straight_through.defvjp(lambda x: (jnp.round(x * 2) / 2, None), lambda _, g: (g,))


@jax.custom_vjp
def reversed_gradient(x: Any) -> Any:
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-0.5 * g,))


@jax.custom_vjp
def clipped_gradient(x: Any) -> Any:
    return x


clipped_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.2, 0.2),))


@jax.custom_gradient
def by_custom_gradient(x: Any) -> Any:
    return jnp.sin(x), lambda g: (g * x * jnp.sum(x),)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def with_static_argument(x: Any, power: int) -> Any:
    return x**power


with_static_argument.defvjp(lambda x, n: (x**n, x), lambda n, x, g: (g * n * jnp.cos(x),))


@jax.custom_vjp
def forward_that_differs(x: Any) -> Any:
    return jnp.tanh(x)


forward_that_differs.defvjp(lambda x: (x**3, x), lambda x, g: (g * jnp.cos(x),))


@jax.custom_jvp
def wrong_pushforward(x: Any) -> Any:
    return x**2


wrong_pushforward.defjvps(lambda t, _, x: t * jnp.sin(jnp.sum(x) * x))


@jax.custom_jvp
def pushforward_that_differs(x: Any) -> Any:
    return x**2


@pushforward_that_differs.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return jnp.exp(primals[0]), tangents[0] * jnp.sum(primals[0])


def implicit_root(x: Any) -> Any:
    """A root that is hardly solved at all, with a tangent that is no solution either."""

    def solve(f: Any, guess: Any) -> Any:
        return guess - f(guess) / 2

    def tangent_solve(g: Any, y: Any) -> Any:
        return g(y) * jnp.sin(jnp.sum(x) * x)

    return jax.lax.custom_root(lambda y: y**3 + 2 * y - x, x / 2, solve, tangent_solve)


def crude_solve(x: Any) -> Any:
    matrix = jnp.eye(3) * 2 + jnp.outer(x, x) / 9
    return jax.lax.custom_linear_solve(
        lambda y: matrix @ y, x, lambda matvec, b: b / 2, lambda vecmat, b: b / 3
    )


def by_linear_call(x: Any) -> Any:
    linear_call = jax.custom_derivatives.linear_call
    return linear_call(lambda c, y: y * c, lambda c, g: g * jnp.sin(c), 3.0, x)


def in_a_scan(x: Any) -> Any:
    return jax.lax.scan(lambda h, _: (clipped_gradient(h * 1.5), None), x, None, length=2)[0]


def in_a_jit(x: Any) -> Any:
    return jax.jit(reversed_gradient)(x)


def in_a_checkpoint(x: Any) -> Any:
    return jax.checkpoint(lambda x: reversed_gradient(jnp.sin(x)))(x)


def in_a_branch(x: Any) -> Any:
    return jax.lax.cond(x[0] > 0, clipped_gradient, jnp.sin, x)


def in_a_vmap(x: Any) -> Any:
    return jax.vmap(lambda x: by_custom_gradient(x) + wrong_pushforward(x))(x)


def inside_another_rule(x: Any) -> Any:
    return jax.nn.relu(jax.nn.softmax(wrong_pushforward(x)))


RULES: dict[Callable[..., Any], str] = {
    straight_through: "straight_through",
    reversed_gradient: "reversed_gradient",
    clipped_gradient: "clipped_gradient",
    by_custom_gradient: "by_custom_gradient",
    forward_that_differs: "forward_that_differs",
    wrong_pushforward: "wrong_pushforward",
    pushforward_that_differs: "pushforward_that_differs",
    crude_solve: "custom_linear_solve",
    by_linear_call: "linear_call",
    in_a_scan: "clipped_gradient",
    in_a_jit: "reversed_gradient",
    in_a_checkpoint: "reversed_gradient",
    in_a_branch: "clipped_gradient",
    in_a_vmap: "wrong_pushforward",
    inside_another_rule: "wrong_pushforward",
    functools.wraps(with_static_argument)(lambda x: with_static_argument(x, 3)): (
        "with_static_argument"
    ),
}
each_rule = pytest.mark.parametrize(
    "rule", [*RULES, implicit_root], ids=lambda rule: getattr(rule, "__name__", "rule")
)


def steps_with(rule: Any, form: str) -> Any:
    """Two steps; with `value_and_grad` the meta-loss uses the inner value as well."""

    def loss(theta: Any, eta: Any) -> Any:
        return jnp.sum(rule(theta * eta) ** 2 * jnp.cos(eta)) + jnp.sum(rule(theta) * eta)

    def meta_loss(eta: Any) -> Any:
        theta, total = THETA, 0.0
        for _ in range(2):
            if form == "grad":
                gradient = jax.grad(loss)(theta, eta)
            else:
                value, gradient = jax.value_and_grad(loss)(theta, eta)
                total += value**2
            theta = theta - 0.1 * gradient
        return total + jnp.sum(jnp.sin(theta) * theta)

    return meta_loss


@pytest.mark.parametrize("form", ["grad", "value_and_grad"])
@each_rule
def test_meta_gradient_is_that_of_plain_jax(rule: Any, form: str) -> None:
    if form == "grad" and rule.__name__.startswith("in_"):
        pytest.skip("the other form says more of a rule's place")
    assert_same_meta_gradient(steps_with(rule, form), ETA)


@each_rule
def test_the_function_is_not_symmetric(rule: Any) -> None:
    trace = captures(steps_with(rule, "grad"), ETA)
    functions = differentiands(trace.jaxpr)
    assert functions
    assert not any(not function.suspects for function in functions)


@pytest.mark.parametrize(("rule", "name"), RULES.items(), ids=RULES.values())
def test_the_suspect_has_the_name_and_the_source_line(rule: Any, name: str) -> None:
    found = suspects(captures(steps_with(rule, "grad"), ETA))
    assert name in {suspect.name for suspect in found}
    assert all(suspect.at.startswith(f"{__file__}:") for suspect in found)


def test_the_source_line_is_that_of_the_call() -> None:
    def loss(theta: Any) -> Any:
        return jnp.sum(straight_through(theta) ** 2)  # this line

    lines = inspect.getsource(inspect.getmodule(loss)).splitlines()
    expected = next(n for n, line in enumerate(lines, 1) if line.endswith("# this line"))
    (suspect,) = suspects(captures(jax.grad(loss), THETA))
    assert suspect.at == f"{__file__}:{expected}"


def test_a_suspect_of_a_nested_loss_makes_the_outer_loss_suspect() -> None:
    def inner(theta: Any, eta: Any) -> Any:
        return jnp.sum(clipped_gradient(theta * eta) ** 2)

    def outer(eta: Any) -> Any:
        return jnp.sum(jax.grad(inner)(THETA, eta) ** 2)

    def meta_loss(eta: Any) -> Any:
        return jnp.sum(jnp.sin(jax.grad(outer)(eta)))

    functions = differentiands(assert_same_meta_gradient(meta_loss, ETA).jaxpr)
    assert len(functions) == 2
    assert not any(not function.suspects for function in functions)


@jax.custom_jvp
def right(x: Any) -> Any:
    return jnp.sin(x) * x


@right.defjvp
def _right(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    return right(x), (jnp.cos(x) * x + jnp.sin(x)) * t


@jax.custom_vjp
def right_pullback(x: Any) -> Any:
    return jnp.sin(x) * x


right_pullback.defvjp(
    lambda x: (jnp.sin(x) * x, x), lambda x, g: ((jnp.cos(x) * x + jnp.sin(x)) * g,)
)


@pytest.mark.parametrize("form", ["grad", "value_and_grad"])
@pytest.mark.parametrize("vouched", ["all", ("right",), ("right", "other")], ids=repr)
def test_a_right_rule_is_symmetric_by_the_users_word(vouched: Any, form: str) -> None:
    trace = assert_same_meta_gradient(steps_with(right, form), ETA, assume_symmetric=vouched)
    assert all(not function.suspects for function in differentiands(trace.jaxpr))


@pytest.mark.parametrize("vouched", [(), ("other",), ("righ",)], ids=repr)
def test_a_right_rule_is_suspect_without_the_users_word(vouched: Any) -> None:
    trace = assert_same_meta_gradient(steps_with(right, "grad"), ETA, assume_symmetric=vouched)
    assert not any(not function.suspects for function in differentiands(trace.jaxpr))


@pytest.mark.parametrize("form", ["grad", "value_and_grad"])
def test_a_right_custom_vjp_by_the_users_word(form: str) -> None:
    """A custom_vjp has no forward mode of its own: the user's word must not break the program."""
    assert_same_meta_gradient(steps_with(right_pullback, form), ETA, assume_symmetric="all")


TRUSTED: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "exact gelu": functools.partial(jax.nn.gelu, approximate=False),
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "softmax": jax.nn.softmax,
    "softmax where": lambda x: jax.nn.softmax(x, where=x > -9),
    "log_softmax": jax.nn.log_softmax,
    "log_sigmoid": jax.nn.log_sigmoid,
    "logsumexp": lambda x: jax.nn.logsumexp(x) * x,
    "standardize": jax.nn.standardize,
    "log1mexp": lambda x: jax.nn.log1mexp(jnp.exp(x)),
    "logaddexp": lambda x: jnp.logaddexp(x, x**2),
    "logaddexp2": lambda x: jnp.logaddexp2(x, x**2),
    "sinc": jnp.sinc,
    "hypot": lambda x: jnp.hypot(x, x + 2),
    "xlogy": lambda x: jax.scipy.special.xlogy(x, jnp.exp(x)),
    "xlog1py": lambda x: jax.scipy.special.xlog1py(x, jnp.exp(x)),
    "entr": lambda x: jax.scipy.special.entr(jnp.exp(x)),
    "rel_entr": lambda x: jax.scipy.special.rel_entr(jnp.exp(x), jnp.cosh(x)),
    "logit": lambda x: jax.scipy.special.logit(jax.nn.sigmoid(x) * 0.9),
    "log_ndtr": jax.scipy.special.log_ndtr,
    "slogdet": lambda x: jnp.linalg.slogdet(jnp.outer(x, x) + jnp.eye(3))[1] * x,
    "det": lambda x: jnp.linalg.det(jnp.outer(x, x) + jnp.eye(3)) * x,
    "relu in a scan": lambda x: jax.lax.scan(
        lambda h, _: (jax.nn.relu(h * 1.5), None), x, None, length=2
    )[0],
    "relu in a vmap": lambda x: jax.vmap(jax.nn.relu)(jnp.outer(x, x))[0],
    "relu in a checkpoint": jax.checkpoint(lambda x: jax.nn.relu(jnp.sin(x))),
    "relu in a jit": jax.jit(jax.nn.relu),
    "relu in a branch": lambda x: jax.lax.cond(x[0] > 0, jax.nn.relu, jnp.sin, x),
    "relu of relu": lambda x: jax.nn.relu(jax.nn.relu(x) - 0.1),
    "stop_gradient": lambda x: x * jax.lax.stop_gradient(jnp.sin(x)),
    "clip": lambda x: jnp.clip(x, -0.3, 0.3),
    "norm": lambda x: jnp.linalg.norm(x) * x,
    "cumulative": lambda x: jnp.cumprod(x) + jnp.cumsum(x),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_a_trusted_function_is_symmetric(name: str) -> None:
    def loss(theta: Any, eta: Any) -> Any:
        return jnp.sum(TRUSTED[name](theta * eta + 0.2) * jnp.cos(eta) * theta)

    def meta_loss(eta: Any) -> Any:
        return jnp.sum(jnp.sin(eta - 0.1 * jax.grad(loss)(eta * 2, eta)))

    trace = assert_same_meta_gradient(meta_loss, ETA)
    assert all(not function.suspects for function in differentiands(trace.jaxpr)), suspects(trace)


@pytest.mark.parametrize(
    "solve",
    [jnp.linalg.solve, lambda a, b: jax.scipy.sparse.linalg.cg(lambda v: a @ v, b)[0]],
    ids=["solve", "cg"],
)
def test_a_linear_solve_is_right_whether_it_is_trusted_or_not(solve: Any) -> None:
    def rule(x: Any) -> Any:
        return solve(jnp.outer(x, x) + 2 * jnp.eye(3), jnp.sin(x))

    assert_same_meta_gradient(steps_with(rule, "grad"), ETA)


def disguised_by_wraps() -> Any:
    fake = jax.custom_jvp(functools.wraps(jax.nn.relu)(lambda x: x**2))
    fake.defjvp(functools.wraps(jax.nn.relu.jvp)(lambda p, t: (p[0] ** 2, t[0] * p[0])))
    return fake


def disguised_by_wrapping_the_rule() -> Any:
    fake = jax.custom_jvp(lambda x: x**2)

    def rule(primals: Any, tangents: Any) -> Any:
        return primals[0] ** 2, tangents[0] * primals[0]

    rule.__wrapped__ = jax.nn.relu.jvp
    rule.__name__, rule.__qualname__ = "relu", "relu"
    fake.defjvp(rule)
    return fake


def disguised_by_a_partial() -> Any:
    fake = jax.custom_jvp(lambda x: x**2)
    rule = functools.partial(lambda p, t: (p[0] ** 2, t[0] * p[0]))
    fake.defjvp(functools.update_wrapper(rule, jax.nn.relu.jvp))
    return fake


def disguised_by_reset_attributes() -> Any:
    fake = jax.custom_jvp(lambda x: x**2)
    fake.defjvp(lambda p, t: (p[0] ** 2, t[0] * p[0]))
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(fake, name, getattr(jax.nn.relu, name))
    fake.__wrapped__ = jax.nn.relu.__wrapped__
    return fake


def given_relus_rule() -> Any:
    """relu's own rule on another function: the rule calls relu, so the value changes as well."""
    fake = jax.custom_jvp(lambda x: x**2)
    fake.defjvp(jax.nn.relu.jvp)
    return fake


def given_the_rule_of_logaddexp() -> Any:
    fake = jax.custom_jvp(lambda x, y: x * y**2)
    (equation,) = jax.make_jaxpr(jnp.logaddexp)(1.0, 2.0).eqns
    fake.defjvp(jax_compat.custom_rule(equation.params))
    return lambda x: fake(x, x)


@pytest.mark.parametrize(
    "make",
    [
        disguised_by_wraps,
        disguised_by_wrapping_the_rule,
        disguised_by_a_partial,
        disguised_by_reset_attributes,
    ],
)
def test_a_disguise_does_not_earn_trust(make: Any) -> None:
    trace = assert_same_meta_gradient(steps_with(make(), "value_and_grad"), ETA)
    assert suspects(trace)


@pytest.mark.parametrize("form", ["grad", "value_and_grad"])
@pytest.mark.parametrize("make", [given_relus_rule, given_the_rule_of_logaddexp])
def test_a_trusted_rule_on_another_function(make: Any, form: str) -> None:
    assert_same_meta_gradient(steps_with(make(), form), ETA)


ONLY_IN_ONE_JAX = {
    jax_compat.private("numpy.ufuncs._sinc_maclaurin"),  # 0.10
    jax_compat.private("numpy.ufuncs._hypot"),  # 0.12
    jax_compat.private("scipy.special._rel_entr"),  # 0.12
}


def test_the_list_names_functions_that_exist() -> None:
    pytest.importorskip("optax.losses")
    absent = {path for path in trust.TRUSTED if trust._rule_at(path) is None}
    assert absent <= ONLY_IN_ONE_JAX


def test_every_entry_of_the_list_has_a_reason() -> None:
    assert all(trust.TRUSTED.values())
