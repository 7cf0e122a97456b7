"""Effects in custom derivative rules happen as often as in plain JAX, and in the same order.

The function's own equation shows none of them: JAX traces a rule when it differentiates.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import io_callback
from support import assert_close, captures, primitives, reasons

import mixflow
from mixflow.passes import DEFAULT_PIPELINE

Note = Callable[[str, Any], None]
ETA, THETA = jnp.array([0.3, -0.7]), jnp.array([0.5, 1.5])

LOG: list[tuple[str, float]] = []


def append(tag: str, value: Any) -> None:
    LOG.append((tag, round(float(value), 9)))


def debugging(*, ordered: bool) -> Note:
    def note(tag: str, x: Any) -> None:
        jax.debug.callback(lambda v: append(tag, v), jnp.sum(x), ordered=ordered)

    return note


def calling_back(tag: str, x: Any) -> None:
    io_callback(lambda v: append(tag, v), None, jnp.sum(x), ordered=True)


def silent(tag: str, x: Any) -> None:
    """Does nothing."""


def in_the_forward_rule(note: Note) -> Any:
    return with_rules(note, silent)


def in_the_backward_rule(note: Note) -> Any:
    return with_rules(silent, note)


def with_rules(forward: Note, backward: Note, inner: Any = jnp.cos) -> Any:
    @jax.custom_vjp
    def sine(x: Any) -> Any:
        return jnp.sin(x)

    def fwd(x: Any) -> Any:
        forward("forward", x)
        return jnp.sin(x), x

    def bwd(x: Any, g: Any) -> Any:
        backward("backward", g)
        return (g * inner(x),)

    sine.defvjp(fwd, bwd)
    return sine


def in_a_jvp_rule(note: Note) -> Any:
    sine = jax.custom_jvp(jnp.sin)

    @sine.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        note("rule", primals[0])
        return jnp.sin(primals[0]), tangents[0] * jnp.cos(primals[0])

    return sine


def in_a_rule_of_a_rule(note: Note) -> Any:
    """Seen by whoever differentiates a gradient."""
    noisy = with_rules(note, note)
    return with_rules(silent, silent, inner=lambda x: noisy(x + jnp.pi / 2))


def in_the_loss(f: Any) -> Any:
    return steps(lambda theta, eta: jnp.sum(jnp.sin(f(theta) * eta) ** 2))


def in_the_step(f: Any) -> Any:
    return steps(loss, after=f)


def in_the_objective(f: Any) -> Any:
    meta = steps(loss)
    return lambda eta: jnp.sum(f(meta(eta) * eta) + f(meta(eta) * eta))


def in_what_nobody_reads(f: Any) -> Any:
    def unread(theta: Any) -> Any:
        f(theta)
        return theta

    return steps(loss, after=unread)


PLACES = [in_the_loss, in_the_step, in_the_objective, in_what_nobody_reads]


def loss(theta: Any, eta: Any) -> Any:
    return jnp.sum(jnp.sin(theta * eta) ** 2)


def steps(loss: Any, after: Any = lambda theta: theta) -> Any:
    def meta(eta: Any) -> Any:
        def step(theta: Any, _: Any) -> Any:
            return after(theta - 0.1 * jax.grad(loss)(theta, eta)), None

        return jnp.sum(jax.lax.scan(step, THETA, length=2)[0] ** 2)

    return meta


def noted(f: Any) -> tuple[list[tuple[str, float]], Any]:
    LOG.clear()
    result = jax.block_until_ready(f(ETA))
    jax.effects_barrier()
    return list(LOG), result


def assert_same(ours: Any, plain: Any, *, ordered: bool) -> None:
    (log, result), (expected, value) = noted(ours), noted(plain)
    assert expected, "nothing happens: the test proves nothing"
    assert log == expected if ordered else sorted(log) == sorted(expected)
    assert_close(result, value)


HAPPENING = [
    (rule, place)
    for rule in (in_the_forward_rule, in_the_backward_rule, in_a_jvp_rule)
    for place in PLACES
    if (rule, place) != (in_the_backward_rule, in_what_nobody_reads)
]
"""Where something happens. A rule of a rule needs a gradient that is differentiated again."""


@pytest.mark.parametrize(("rule", "place"), [*HAPPENING, (in_a_rule_of_a_rule, in_the_loss)])
def test_ordered_effects(rule: Any, place: Any) -> None:
    def meta() -> Any:
        return place(rule(debugging(ordered=True)))

    inside = mixflow.compile(jax.grad(meta()), passes=DEFAULT_PIPELINE)
    assert_same(inside, jax.jit(jax.grad(meta())), ordered=True)
    outside = jax.grad(mixflow.compile(meta(), passes=DEFAULT_PIPELINE))
    assert_same(outside, jax.grad(jax.jit(meta())), ordered=True)


@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
def test_effects_in_any_order_by_the_planners_choice(place: Any) -> None:
    def meta() -> Any:
        return place(with_rules(*[debugging(ordered=False)] * 2))

    assert_same(mixflow.compile(jax.grad(meta())), jax.jit(jax.grad(meta())), ordered=False)
    outside = jax.grad(mixflow.compile(meta()))
    assert_same(outside, jax.grad(jax.jit(meta())), ordered=False)


def test_callbacks_that_have_no_derivative() -> None:
    meta = in_the_loss(in_the_backward_rule(calling_back))
    assert_same(mixflow.compile(meta), jax.jit(meta), ordered=True)


AROUND: dict[str, Callable[[Any], Any]] = {
    "jit": jax.jit,
    "vmap": jax.vmap,
    "scan": lambda f: lambda x: jax.lax.scan(lambda x, _: (f(x), None), x, length=2)[0],
    "cond": lambda f: lambda x: jax.lax.cond(x[0] > -9, f, jnp.cos, x),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("place", [in_the_loss, in_the_step], ids=lambda f: f.__name__)
def test_deeper_in_the_program(place: Any, around: str) -> None:
    def meta() -> Any:
        return place(AROUND[around](with_rules(*[debugging(ordered=False)] * 2)))

    inside = mixflow.compile(jax.grad(meta()), passes=DEFAULT_PIPELINE)
    assert_same(inside, jax.jit(jax.grad(meta())), ordered=False)


def test_the_reason_names_the_effect_and_the_line_of_the_call() -> None:
    trace = captures(in_the_loss(in_the_forward_rule(debugging(ordered=True))), ETA)
    line = inspect.getsourcelines(in_the_loss)[1] + 1
    place = f"test_effects_in_rules.py:{line}"
    assert "a custom rule has effects: jax.debug.callback" in reasons(trace)
    assert reasons(trace).endswith(place)
    assert not primitives(trace.jaxpr)["mixflow_vjp"]


def test_a_step_whose_rules_have_effects_is_not_run_again_and_says_so() -> None:
    meta = in_the_step(in_the_forward_rule(debugging(ordered=True)))
    compiled = mixflow.compile(meta, passes=DEFAULT_PIPELINE)
    declines = compiled.optimised(ETA, differentiated=True).declines
    assert any("a custom rule in the step has effects" in one.text for one in declines)


def test_rules_without_effects_are_captured() -> None:
    trace = captures(in_the_loss(in_a_rule_of_a_rule(silent)), ETA)
    assert primitives(trace.jaxpr)["mixflow_vjp"]
    assert not trace.declines
    assert not trace.with_effects
