"""Which custom rules are proved to be linear, and what comes of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from custom_functions import LINEAR, NOT_LINEAR, WEIGHTS, by_vjp
from jax import lax
from support import assert_close, captures, differentiands, relative_error

import mixflow
from mixflow.compiler.jaxprs.flagged import without_flags
from mixflow.compiler.rules import suspects as derivative_rules
from mixflow.compiler.rules.linearity import Degree, Linearity, why_not_linear

ETA = jnp.array([0.3, -0.7, 1.1])
THETA = jnp.array([0.5, 1.2, -0.4])
BOTH = "forward-over-reverse,reverse-over-forward"
FORMS: dict[str, Any] = {
    "bare": lambda rule: rule,
    "jit": jax.jit,
    "vmap": lambda rule: lambda x: jnp.sum(jax.vmap(rule)(jnp.stack([x, 2 * x])), 0),
    "checkpoint": jax.checkpoint,
    "scan": lambda rule: lambda x: lax.scan(lambda h, _: (rule(h) * 0.9, None), x, length=2)[0],
    "cond": lambda rule: lambda x: lax.cond(x[0] > -9, rule, jnp.sin, x),
    "twice": lambda rule: lambda x: rule(rule(x) + x),
}


def custom_equation(rule: Any) -> Any:
    jaxpr = without_flags(jax.make_jaxpr(rule)(THETA)).jaxpr
    (equation,) = [eqn for eqn in jaxpr.eqns if "custom" in eqn.primitive.name]
    return equation


def meta_loss(rule: Any, *, unrolled: bool = False) -> Any:
    def loss(theta: Any, eta: Any) -> Any:
        return jnp.sum(rule(jnp.sin(theta * eta)) * jnp.cos(eta) * theta)

    def step(theta: Any, eta: Any) -> Any:
        return theta - 0.3 * jax.grad(loss)(theta, eta)

    def meta(eta: Any) -> Any:
        if unrolled:
            return jnp.sum(jnp.sin(step(step(THETA, eta), eta)))
        steps = lax.scan(lambda theta, _: (step(theta, eta), None), THETA, length=2)
        return jnp.sum(jnp.sin(steps[0]))

    return meta


@pytest.mark.parametrize("name", LINEAR)
def test_linear_rules_are_proved_so(name: str) -> None:
    assert why_not_linear(custom_equation(LINEAR[name])) is None


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_other_rules_are_not(name: str) -> None:
    assert why_not_linear(custom_equation(NOT_LINEAR[name]))


IN_FORMS = ("idiom, reversed", "of a matrix", "slope of another", "custom_jvp, untrue")
"""Rules of each kind: those that are tried in every form."""

CASES = [*((name, "bare") for name in LINEAR), *((n, f) for n in IN_FORMS for f in FORMS)]


@pytest.mark.parametrize(("name", "form"), dict.fromkeys(CASES))
def test_the_meta_gradient_of_a_linear_rule(name: str, form: str) -> None:
    """Against the unrolled form: JAX before 0.12 is wrong about an untrue custom_jvp in a scan.

    And without the checkpoint: with `jax_remat3` JAX is wrong about an untrue rule in one.
    """
    if form == "scan" and jax.__version__ < "0.12" and name == "custom_jvp, untrue":
        pytest.skip("the form itself is such a scan: there is no reference")
    rule = FORMS[form](LINEAR[name])
    same = LINEAR[name] if form == "checkpoint" else rule
    expected = jax.jit(jax.value_and_grad(meta_loss(same, unrolled=True)))(ETA)
    compiled = mixflow.compile(jax.value_and_grad(meta_loss(rule)), passes=BOTH)
    assert_close(compiled(ETA), expected)
    assert "transposed rule" in compiled.ir(ETA)


@pytest.mark.parametrize("name", sorted(NOT_LINEAR.keys() - {"a while loop"}))
def test_the_meta_gradient_of_another_rule(name: str) -> None:
    rule = NOT_LINEAR[name]
    expected = jax.jit(jax.value_and_grad(meta_loss(rule)))(ETA)
    compiled = mixflow.compile(jax.value_and_grad(meta_loss(rule)), passes=BOTH)
    assert_close(compiled(ETA), expected)
    found = compiled.optimised(ETA)
    assert " rule]" not in str(found.module)
    assert any("linear" in remark.text for remark in found.declines)


ON_THE_TANGENT = "custom function on the tangent"
TAKEN_WITHOUT_A_WORD = [
    name
    for name in NOT_LINEAR
    if name not in ("a while loop", "if finite", "no NaN", "normalised", ON_THE_TANGENT)
]
"""Not those that are linear at these points, nor one that has no derivative at 0."""


@pytest.mark.parametrize("name", TAKEN_WITHOUT_A_WORD)
def test_without_the_walk_the_result_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivative_rules, "why_not_linear", lambda _: None)
    f = jax.value_and_grad(meta_loss(NOT_LINEAR[name]))
    expected = jax.jit(f)(ETA)
    assert relative_error(mixflow.compile(f, passes=BOTH)(ETA), expected) > 1e-6


def test_without_the_walk_a_custom_function_on_the_tangent_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between two products it is in no group of equations, which JAX would linearise."""
    act, mixing = NOT_LINEAR[ON_THE_TANGENT], jnp.cos(jnp.arange(9.0)).reshape(3, 3)

    def loss(theta: Any, eta: Any) -> Any:
        return jnp.sum((mixing @ act(mixing @ jnp.sin(theta))) * eta)

    f = jax.grad(lambda eta: jnp.sum(jnp.sin(jax.grad(loss)(jnp.cos(eta), eta))))
    assert_close(mixflow.compile(f, passes=BOTH)(ETA), jax.jit(f)(ETA))
    monkeypatch.setattr(derivative_rules, "why_not_linear", lambda _: None)
    assert relative_error(mixflow.compile(f, passes=BOTH)(ETA), jax.jit(f)(ETA)) > 1e-6


def test_a_rule_that_looks_at_symbolic_zeros() -> None:
    @jax.custom_jvp
    def rule(x: Any) -> Any:
        return jnp.sin(x)

    rule.defjvp(lambda p, t: (rule(*p), t[0] * jnp.cos(p[0])), symbolic_zeros=True)
    assert "zero" in str(why_not_linear(custom_equation(rule)))
    f = jax.value_and_grad(meta_loss(rule))
    compiled = mixflow.compile(f, passes=BOTH)
    assert_close(compiled(ETA), jax.jit(f)(ETA))
    assert " rule]" not in compiled.ir(ETA)


def test_a_rule_with_effects_has_them_as_often_as_in_jax() -> None:
    def backward(_: Any, g: Any) -> Any:
        jax.debug.callback(lambda _: log.append(1), g[0])
        return (g,)

    @jax.custom_vjp
    def rule(x: Any) -> Any:
        return x

    log = list[int]()
    rule.defvjp(lambda x: (x, None), backward)
    assert "effects" in str(why_not_linear(custom_equation(rule)))


def test_rules_closed_over_arrays_are_linear() -> None:
    @jax.custom_vjp
    def rule(x: Any) -> Any:
        return x * WEIGHTS

    rule.defvjp(lambda x: (x * WEIGHTS, None), lambda _, g: (g * WEIGHTS,))
    assert why_not_linear(custom_equation(rule)) is None


@pytest.mark.parametrize(
    ("f", "expected"),
    {
        "add": (lambda x, g: g + g, Degree.LINEAR),
        "affine": (lambda x, g: g + x, Degree.OTHER),
        "zero and linear": (lambda x, g: g + jnp.zeros_like(x), Degree.LINEAR),
        "product": (lambda x, g: jnp.sin(x) * g, Degree.LINEAR),
        "square": (lambda x, g: g * g, Degree.OTHER),
        "quotient": (lambda x, g: g / x, Degree.LINEAR),
        "reciprocal": (lambda x, g: x / g, Degree.OTHER),
        "constant": (lambda x, g: jnp.cos(x), Degree.CONSTANT),
        "zero": (lambda x, g: jnp.zeros_like(x) * 2.0, Degree.CONSTANT),
        "matrix product": (lambda x, g: jnp.outer(x, x) @ g, Degree.LINEAR),
        "index by x": (lambda x, g: g[jnp.argsort(x)], Degree.LINEAR),
        "index by g": (lambda x, g: x[jnp.argsort(g)], Degree.OTHER),
        "mask": (lambda x, g: jnp.where(x > 0, g, 0.0), Degree.LINEAR),
        "mask to a constant": (lambda x, g: jnp.where(x > 0, g, 1.0), Degree.OTHER),
        "scan": (lambda x, g: lax.scan(lambda h, a: (h * a, h), g, jnp.ones(3))[0], Degree.LINEAR),
        "scan that adds": (
            lambda x, g: lax.scan(lambda h, _: (h + x, None), g, length=2)[0],
            Degree.OTHER,
        ),
        "carry that becomes linear": (
            lambda x, g: lax.scan(lambda h, _: (h + g, None), jnp.zeros(3), length=2)[0],
            Degree.LINEAR,
        ),
        "branches alike": (
            lambda x, g: lax.cond(x[0] > 0, lambda: g, lambda: 2 * g),
            Degree.LINEAR,
        ),
        "branches that differ": (
            lambda x, g: lax.cond(x[0] > 0, lambda: g, lambda: x),
            Degree.OTHER,
        ),
        "cast": (lambda x, g: g.astype(jnp.bfloat16).astype(g.dtype), Degree.LINEAR),
        "cast to integers": (lambda x, g: g.astype(int).astype(g.dtype), Degree.OTHER),
    }.values(),
)
def test_degrees(f: Any, expected: Degree) -> None:
    jaxpr = jax.make_jaxpr(f)(THETA, ETA)
    assert Linearity().program(jaxpr, [Degree.CONSTANT, Degree.LINEAR]) == [expected]


@pytest.mark.parametrize("rule", [LINEAR["reversed"], NOT_LINEAR["clipped"]])
def test_what_the_point_does_not_reach_need_be_linear_alone(rule: Any) -> None:
    def loss(theta: Any, eta: Any) -> Any:
        return jnp.sum(theta**2 * rule(eta))

    trace = captures(jax.grad(lambda eta: jnp.sum(jax.grad(loss)(THETA, eta))), ETA)
    inner = differentiands(trace.jaxpr)[-1]
    assert not inner.suspects
    assert bool(inner.soundness.obstacles) == (rule is NOT_LINEAR["clipped"])


def test_a_rule_that_returns_a_numpy_array() -> None:
    """No jaxpr may hold one, and JAX asserts so where it finds one in a scan."""
    rule = by_vjp(lambda x: (x, None), lambda _, g: (np.array([0.2, 0.3, 0.4]),))

    def meta(eta: Any) -> Any:
        def step(theta: Any, _: Any) -> Any:
            value, gradient = jax.value_and_grad(lambda theta: jnp.sum(rule(theta) * eta))(theta)
            return gradient, value

        return jnp.sum(lax.scan(step, THETA, length=2)[1])

    f = jax.grad(meta)
    assert_close(mixflow.compile(f, passes=BOTH)(ETA), jax.jit(f)(ETA))
