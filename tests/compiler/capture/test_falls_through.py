"""What cannot be captured is JAX's own, with the reason recorded and nothing left behind."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import (
    assert_close,
    assert_same_meta_gradient,
    captures,
    compiled,
    primitives,
    reasons,
)

from mixflow.compiler.capture.pullback import Pullback
from mixflow.compiler.jax_compat import VJP_OF_JAX
from mixflow.compiler.recording import current_recording

ETA = jnp.array([0.3, -0.7, 1.1])
THETA = jnp.array([0.5, 1.5, -0.4])


def loss(theta: Any, eta: Any) -> Any:
    return jnp.sum(jnp.sin(theta * eta) * theta) + jnp.sum(theta**4) / 4


def ends(theta: Any) -> Any:
    return jnp.sum(jnp.sin(theta) * theta)


def printing(eta: Any, calls: list[Any]) -> Any:
    def noisy(theta: Any) -> Any:
        calls.append("called")
        jax.debug.print("{x}", x=theta[0])
        return loss(theta, eta)

    return ends(jax.grad(noisy)(THETA))


def calling_back(eta: Any, calls: list[Any]) -> Any:
    def noisy(theta: Any) -> Any:
        calls.append("called")
        jax.debug.callback(lambda x: None, theta)
        return loss(theta, eta)

    return ends(jax.grad(noisy)(THETA))


def printing_in_a_scan(eta: Any, calls: list[Any]) -> Any:
    def noisy(theta: Any) -> Any:
        calls.append("called")

        def layer(hidden: Any, _: Any) -> Any:
            jax.debug.print("{x}", x=hidden[0])
            return jnp.tanh(hidden * eta), None

        return loss(jax.lax.scan(layer, theta, None, length=2)[0], eta)

    return ends(jax.grad(noisy)(THETA))


def closing_over_a_reference(eta: Any, calls: list[Any]) -> Any:
    seen = jax.new_ref(jnp.zeros(3))

    def noisy(theta: Any) -> Any:
        calls.append("called")
        seen[...] = jax.lax.stop_gradient(theta * 2)
        return loss(theta, eta)

    gradient = jax.grad(noisy)(THETA)
    return ends(gradient) + jax.lax.stop_gradient(jnp.sum(seen[...]))


def reading_a_reference(eta: Any, calls: list[Any]) -> Any:
    scale = jax.new_ref(eta)

    def scaled(theta: Any) -> Any:
        calls.append("called")
        return loss(theta, scale[...])

    return ends(jax.grad(scaled)(THETA))


def owning_a_reference(eta: Any, calls: list[Any]) -> Any:
    def internal(theta: Any) -> Any:
        calls.append("called")
        total = jax.new_ref(jnp.zeros(3))
        total[...] += jnp.sin(theta) * eta
        return loss(total[...], eta)

    return ends(jax.grad(internal)(THETA))


EFFECTFUL = [
    printing,
    calling_back,
    printing_in_a_scan,
    closing_over_a_reference,
    reading_a_reference,
]


@pytest.mark.parametrize("program", EFFECTFUL, ids=lambda f: f.__name__)
def test_a_loss_with_effects_is_jaxs_own(program: Any) -> None:
    def meta_loss(eta: Any) -> Any:
        return program(eta, [])

    expected = jax.jit(jax.value_and_grad(meta_loss))(ETA)
    assert_close(compiled(jax.value_and_grad(meta_loss))(ETA), expected)


@pytest.mark.parametrize("program", EFFECTFUL, ids=lambda f: f.__name__)
def test_a_compiled_loss_with_effects_is_differentiated_from_outside(program: Any) -> None:
    def meta_loss(eta: Any) -> Any:
        return program(eta, [])

    expected = jax.jit(jax.value_and_grad(meta_loss))(ETA)
    assert_close(jax.jit(jax.value_and_grad(compiled(meta_loss)))(ETA), expected)


@pytest.mark.parametrize("program", EFFECTFUL, ids=lambda f: f.__name__)
def test_a_loss_with_effects_is_called_once_and_the_reason_recorded(program: Any) -> None:
    calls: list[Any] = []
    trace = captures(lambda eta: program(eta, calls), ETA)
    assert calls == ["called"]
    assert trace.num_captured == 0
    assert "effect" in reasons(trace) or "reference" in reasons(trace)
    assert __file__ in trace.declines[0].at


def line_of(words: str) -> int:
    """The line of this file on which some words stand first."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if words in line)


@pytest.mark.parametrize(
    ("program", "called", "words"),
    [
        (printing, "jax.debug.print", "jax.debug.print("),
        (calling_back, "jax.debug.callback", "jax.debug.callback("),
        (printing_in_a_scan, "jax.debug.print", 'jax.debug.print("{x}", x=hidden[0])'),
    ],
    ids=["printing", "calling back", "in a scan"],
)
def test_the_reason_names_the_effect_and_its_line(program: Any, called: str, words: str) -> None:
    (decline,) = captures(lambda eta: program(eta, []), ETA).declines
    place = f"{called} at {__file__}:{line_of(words)}"
    assert decline.why == f"the function has effects: {place}"


def test_a_reference_inside_the_loss_alone() -> None:
    def meta_loss(eta: Any) -> Any:
        return owning_a_reference(eta, [])

    expected = jax.jit(jax.value_and_grad(meta_loss))(ETA)
    assert_close(compiled(jax.value_and_grad(meta_loss))(ETA), expected)


def test_a_reference_as_a_primal() -> None:
    def step(eta: Any) -> Any:
        ref = jax.new_ref(THETA)

        def squared(ref: Any, eta: Any) -> Any:
            return jnp.sum(ref[...] ** 2 * eta)

        return jax.vjp(squared, ref, eta)[0]

    assert_close(compiled(step)(ETA), jax.jit(step)(ETA))
    assert "mutable reference" in reasons(captures(step, ETA))


def test_gradients_accumulated_into_references() -> None:
    def step(eta: Any) -> Any:
        value, pullback = jax.vjp(lambda t: loss(t, eta), THETA)
        total = jax.new_ref(jnp.ones(3))
        pullback.with_refs(total)(value)
        pullback.with_refs(total)(value)
        return total[...]

    assert_close(compiled(step)(ETA), jax.jit(step)(ETA))


def test_the_residuals_of_a_pullback_can_be_read() -> None:
    def step(eta: Any) -> Any:
        _, pullback = jax.vjp(lambda t: jnp.sin(t) * eta, THETA)
        return pullback.args_res, len(pullback.opaque_residuals)

    found, expected = captures(step, ETA), jax.make_jaxpr(step)(ETA)
    assert [str(aval) for aval in found.jaxpr.out_avals] == list(map(str, expected.out_avals))


def test_options_of_vjp_that_are_newer() -> None:
    if "saveable_args" not in inspect.signature(VJP_OF_JAX).parameters:
        pytest.skip("this JAX has no saveable_args")

    def meta_loss(eta: Any) -> Any:
        value, pullback = jax.vjp(loss, THETA, eta, in_nzs=(True, False))
        return ends(pullback(value)[0])

    trace = assert_same_meta_gradient(meta_loss, ETA, captured=False)
    assert "in_nzs" in reasons(trace)


@pytest.mark.parametrize(
    "steered",
    [
        pytest.param(lambda x: sum(x**i for i in range(int(x))), id="range"),
        pytest.param(lambda x: x**2 if int(x) > 0 else -x, id="branch"),
        pytest.param(lambda x: x * x.item(), id="item"),
        pytest.param(lambda x: x * np.sin(np.asarray(x.item())), id="numpy"),
    ],
)
def test_a_concrete_point_may_steer_python(steered: Any) -> None:
    """Under jit a concrete point still knows its value in plain JAX."""

    def meta_loss(eta: Any) -> Any:
        return ends(eta * jax.grad(steered)(2.0))

    trace = assert_same_meta_gradient(meta_loss, ETA, captured=False)
    assert "value" in reasons(trace)


def test_a_traced_point_that_steers_python_raises_what_jax_raises() -> None:
    def meta_loss(eta: Any) -> Any:
        return jax.grad(lambda x: x if x > 0 else -x)(eta[0])

    with pytest.raises(jax.errors.TracerBoolConversionError):
        compiled(meta_loss)(ETA)
    assert_nothing_is_active()


def test_a_custom_rule_that_closes_over_a_tracer_of_the_caller() -> None:
    def meta_loss(eta: Any) -> Any:
        scale = jnp.sin(eta)

        @jax.custom_vjp
        def scaled(x: Any) -> Any:
            return x * scale

        scaled.defvjp(lambda x: (x * scale, x), lambda x, g: (g * scale * jnp.cos(x),))
        return ends(jax.grad(lambda theta: loss(scaled(theta), eta))(THETA))

    trace = assert_same_meta_gradient(meta_loss, ETA, captured=False)
    assert "closes over" in reasons(trace)


def test_a_custom_jvp_that_closes_over_a_tracer_of_the_caller() -> None:
    def meta_loss(eta: Any) -> Any:
        scale = jnp.sin(eta)
        scaled = jax.custom_jvp(lambda x: x * x)
        scaled.defjvps(lambda t, _, x: t * x * scale)
        return ends(jax.grad(lambda theta: loss(scaled(theta), eta))(THETA))

    trace = assert_same_meta_gradient(meta_loss, ETA, captured=False)
    assert "closes over" in reasons(trace)


def test_a_custom_rule_that_closes_over_a_tracer_of_the_loss() -> None:
    def meta_loss(eta: Any) -> Any:
        def closing(theta: Any) -> Any:
            scale = jnp.sin(eta) * jax.lax.stop_gradient(theta)
            scaled = jax.custom_jvp(lambda x: x * x)
            scaled.defjvps(lambda t, _, x: t * x * scale)
            return loss(scaled(theta), eta)

        return ends(jax.grad(closing)(THETA))

    assert_same_meta_gradient(meta_loss, ETA, captured=False)


def test_a_custom_rule_that_closes_over_the_callers_scan() -> None:
    """JAX cannot differentiate this again, but it has a value."""

    def descend(eta: Any) -> Any:
        def body(theta: Any, x: Any) -> Any:
            scaled = jax.custom_jvp(lambda t: t * x)
            scaled.defjvps(lambda dot, _, t: dot * jnp.sin(x))
            return theta - 0.1 * jax.grad(lambda t: loss(scaled(t), eta))(theta), None

        return jax.lax.scan(body, THETA, jnp.outer(jnp.arange(2.0), eta))[0]

    assert_close(compiled(descend)(ETA), jax.jit(descend)(ETA))
    assert "closes over" in reasons(captures(descend, ETA))


def assert_nothing_is_active() -> None:
    assert current_recording() is None
    pullback = jax.vjp(loss, THETA, ETA)[1]
    assert not isinstance(pullback, Pullback)


class UserError(Exception):
    """What the user's code raises."""


def raising(where: str) -> Any:
    def maybe_raise(here: str) -> None:
        if where == here:
            raise UserError(where)

    def meta_loss(eta: Any) -> Any:
        def failing(theta: Any) -> Any:
            def nested(phi: Any) -> Any:
                maybe_raise("nested loss")
                return loss(phi, eta)

            maybe_raise("loss")
            return jnp.sum(jax.grad(nested)(theta))

        def body(theta: Any, _: Any) -> Any:
            maybe_raise("scan")
            return theta - jax.grad(failing)(theta), None

        theta = jax.lax.scan(body, THETA, None, length=2)[0]
        maybe_raise("meta-loss")
        return ends(theta)

    return meta_loss


@pytest.mark.parametrize("where", ["nested loss", "loss", "scan", "meta-loss"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.grad], ids=["value", "gradient"])
def test_the_users_exception_surfaces_and_nothing_stays_active(transform: Any, where: str) -> None:
    with pytest.raises(UserError, match=where) as raised:
        compiled(transform(raising(where)))(ETA)
    assert raised.value.__cause__ is None
    assert_nothing_is_active()


def test_an_exception_that_the_user_catches_does_not_end_the_capture() -> None:
    def meta_loss(eta: Any) -> Any:
        def failing(theta: Any) -> Any:
            raise UserError

        try:
            jax.grad(failing)(THETA)
        except UserError:
            return ends(jax.grad(loss)(THETA, eta))

    assert assert_same_meta_gradient(meta_loss, ETA).num_captured == 1


def test_a_second_thread_sees_plain_jax() -> None:
    kinds: list[Any] = []

    def differentiate() -> None:
        kinds.append(type(jax.vjp(loss, THETA, ETA)[1]))
        jaxpr = jax.make_jaxpr(jax.grad(loss))(THETA, ETA)
        kinds.append([name for name in primitives(jaxpr.jaxpr) if name.startswith("mixflow")])

    def meta_loss(eta: Any) -> Any:
        thread = threading.Thread(target=differentiate)
        thread.start()
        thread.join()
        return ends(jax.grad(loss)(THETA, eta))

    trace = captures(meta_loss, ETA)
    assert primitives(trace.jaxpr)["mixflow_vjp"] == 1
    assert kinds[0] is not Pullback
    assert kinds[1] == []


def test_two_threads_capture_at_the_same_time() -> None:
    barrier, traces = threading.Barrier(2), []
    gradient = jax.jit(jax.grad(loss))

    def run(repeats: int) -> None:
        def meta_loss(eta: Any) -> Any:
            barrier.wait(timeout=60)
            return sum(ends(gradient(THETA, eta * i)) for i in range(repeats))

        traces.append((repeats, captures(meta_loss, ETA).jaxpr))

    threads = [threading.Thread(target=run, args=(repeats,)) for repeats in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(n, primitives(jaxpr)["mixflow_vjp"]) for n, jaxpr in sorted(traces)] == [
        (1, 1),
        (3, 3),
    ]


def test_a_pullback_used_after_the_trace_is_over_raises_as_in_jax() -> None:
    leaked: list[Any] = []

    def leaks(eta: Any) -> Any:
        value, pullback = jax.vjp(loss, THETA, eta)
        leaked.append(pullback)
        return value

    compiled(leaks)(ETA)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        leaked[0](jnp.ones(()))


def test_a_pullback_of_constants_outlives_the_trace_as_in_jax() -> None:
    """A model that caches what it computed from concrete values keeps working."""
    cache: list[Any] = []

    def caches(eta: Any) -> Any:
        if not cache:
            cache.append(jax.vjp(lambda t: jnp.sin(t) * t, 2.0)[1])
        return eta * cache[0](1.0)[0]

    expected = jax.jit(lambda eta: eta * jax.grad(lambda t: jnp.sin(t) * t)(2.0))(ETA)
    assert_close(compiled(caches)(ETA), expected)


def test_a_loss_that_raises_jaxs_own_error_is_not_declined() -> None:
    def meta_loss(eta: Any) -> Any:
        return jax.grad(lambda t: jnp.sum(t @ jnp.ones((2, 2))))(THETA)

    with pytest.raises(TypeError) as expected:
        jax.jit(meta_loss)(ETA)
    with pytest.raises(TypeError) as found:
        compiled(meta_loss)(ETA)
    assert str(found.value) == str(expected.value)
    assert_nothing_is_active()


class Keys:
    """A sequence of random keys, as haiku's: each splits the one that is kept."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def __next__(self) -> Any:
        self.key, new = jax.random.split(self.key)
        return new


def noisy_steps(eta: Any, key: Any) -> Any:
    """Steps on a loss that takes its random keys from a sequence outside of it."""
    keys, theta = Keys(key), THETA
    for _ in range(2):

        def noisy(theta: Any) -> Any:
            return loss(theta + jax.random.normal(next(keys), theta.shape), eta)

        theta = theta - 0.1 * jax.grad(noisy)(theta)
    return ends(theta)


def test_a_loss_that_leaves_values_behind_is_left_to_jax() -> None:
    args = ETA, jax.random.key(0)
    gradient = jax.value_and_grad(noisy_steps)
    assert_close(compiled(gradient)(*args), jax.jit(gradient)(*args))
    found = captures(gradient, *args)
    assert found.num_captured == 0
    assert "a loss leaves values behind that are used after it" in reasons(found)


def test_a_value_that_outlives_the_program_is_an_error_as_in_jax() -> None:
    kept: list[Any] = []

    def leaking(eta: Any) -> Any:
        kept.append(eta * 2)
        return ends(jax.grad(loss)(THETA, kept[0]))

    compiled(jax.grad(leaking))(ETA)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        compiled(jax.grad(leaking))(ETA)
