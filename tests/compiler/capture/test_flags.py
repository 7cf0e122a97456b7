"""Programs traced with JAX's flags `jax_remat3` and `jax_custom_vjp3` set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from support import assert_close, assert_same_meta_gradient, captures, primitives, reasons, suspects

import mixflow
from mixflow.compiler.jaxprs.flagged import without_flags
from mixflow.passes import DEFAULT_PIPELINE

ETA = jnp.array([0.3, -0.7, 0.5])
TABLE = jnp.array([1.0, 2.0, 3.0])
THETA = jnp.array([0.2, 0.1, -0.4])


def checkpointed(theta: Any, eta: Any) -> Any:
    inner = jax.checkpoint(lambda x: jnp.sin(x) ** 2)
    return jnp.sum(jax.checkpoint(lambda x: inner(jnp.tanh(x * eta)))(theta))


def checkpointed_with_a_policy(theta: Any, eta: Any) -> Any:
    policy = jax.checkpoint_policies.save_only_these_names("hidden")

    @functools.partial(jax.checkpoint, policy=policy)
    def block(x: Any) -> Any:
        return jnp.sin(checkpoint_name(jnp.tanh(x * eta), "hidden")) ** 2

    return jnp.sum(block(theta))


def custom_vjp() -> Any:
    """A new function, made while the flags are what they are: the sine of k x.

    Its rule is true: JAX 0.10 with `jax_remat3` differentiates an untrue one in a checkpoint twice
    to something else than it does without the flag, and than JAX 0.11 and 0.12 do with it.
    """
    function = jax.custom_vjp(lambda x, k: jnp.sin(k * x), nondiff_argnums=(1,))
    function.defvjp(lambda x, k: (jnp.sin(k * x), x), lambda k, x, bar: (bar * k * jnp.cos(k * x),))
    return function


def with_a_custom_vjp(theta: Any, eta: Any) -> Any:
    return jnp.sum(custom_vjp()(theta * eta, 2.0))


def with_a_vmapped_custom_vjp(theta: Any, eta: Any) -> Any:
    return jnp.sum(jax.vmap(custom_vjp(), (0, None))(theta * eta, 2.0))


def in_control_flow(theta: Any, eta: Any) -> Any:
    step = jax.checkpoint(lambda x, _: (custom_vjp()(x * eta, 2.0), None))
    theta = jax.lax.scan(step, theta, length=2)[0]
    return jax.lax.cond(eta[0] > 0, checkpointed, with_a_custom_vjp, theta, eta)


def in_a_custom_jvp(theta: Any, eta: Any) -> Any:
    function = jax.custom_jvp(jax.checkpoint(lambda x: jnp.sin(x) * x))
    function.defjvps(lambda t, _, x: t * jax.checkpoint(lambda x: jnp.cos(x) * x)(x))
    return jnp.sum(function(theta * eta))


def with_integers(theta: Any, eta: Any) -> Any:
    function = jax.custom_vjp(lambda x, i: x[i] * jnp.sin(x))
    function.defvjp(lambda x, i: (x[i] * jnp.sin(x), (x, i)), lambda r, bar: (bar * r[0], None))
    return jnp.sum(function(theta * eta, jnp.array(1)))


LOSSES = [
    checkpointed,
    checkpointed_with_a_policy,
    with_a_custom_vjp,
    with_a_vmapped_custom_vjp,
    in_control_flow,
    in_a_custom_jvp,
    with_integers,
]


def meta_loss(loss: Callable[..., Any]) -> Callable[..., Any]:
    def meta(eta: Any) -> Any:
        step = lambda theta, _: (theta - 0.1 * jax.grad(loss)(theta, eta), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, THETA, length=2)[0] ** 2)

    return meta


@pytest.mark.parametrize("loss", LOSSES)
def test_a_program_under_the_flags_is_captured_as_without_them(
    loss: Any, flags: tuple[str, ...]
) -> None:
    flagged = primitives(captures(meta_loss(loss), ETA).jaxpr)
    for name in flags:
        jax.config.update(name, False)
    plain = primitives(captures(meta_loss(loss), ETA).jaxpr)
    for call in ("jit", "eval_jaxpr"):  # what was vmapped is in one more
        del flagged[call], plain[call]
    assert flagged == plain


@pytest.mark.parametrize("loss", LOSSES)
def test_its_meta_gradient_is_plain_jax_s_under_the_flags(loss: Any, flags: None) -> None:
    assert_same_meta_gradient(meta_loss(loss), ETA)


def test_a_rule_under_the_flags_has_its_functions_name(flags: None) -> None:
    def twice(x: Any) -> Any:
        return x * 2

    function = jax.custom_vjp(twice)
    function.defvjp(lambda x: (x * 2, None), lambda _, bar: (bar * 2,))
    found = suspects(captures(meta_loss(lambda t, e: jnp.sum(function(t * e) ** 2)), ETA))
    assert {suspect.name for suspect in found} == {"twice"}


PUSHED = jax.__version_info__ >= (0, 12)
"""Whether JAX can push such a rule forward; if not, it is left to JAX."""


def assert_stays(trace: Any) -> None:
    if not PUSHED:
        assert "no forward mode" in reasons(trace)
        return
    assert primitives(trace.jaxpr)["call_hi_primitive"] > 0
    assert suspects(trace)


def test_a_rule_that_looks_at_symbolic_zeros_stays_and_stays_right(flags: None) -> None:
    def loss(theta: Any, eta: Any) -> Any:
        function = jax.custom_vjp(jnp.sin)
        function.defvjp(
            lambda x: (jnp.sin(x.value), x.value), lambda x, bar: (bar * x,), symbolic_zeros=True
        )
        step = lambda x, _: (function(x * eta), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, theta, length=2)[0])

    trace = assert_same_meta_gradient(meta_loss(loss), ETA, captured=PUSHED)
    assert_stays(trace)


def test_such_a_rule_may_call_its_own_function(flags: None) -> None:
    """The second derivative differentiates that call; JAX before 0.12 cannot push it forward."""
    function = jax.custom_vjp(jnp.sin)
    function.defvjp(
        lambda x: (function(x.value), jnp.cos(x.value)),
        lambda slope, bar: (bar * slope,),
        symbolic_zeros=True,
    )
    loss = lambda theta, eta: jnp.sum(function(function(theta * eta)))  # noqa: E731
    assert_stays(assert_same_meta_gradient(meta_loss(loss), ETA, captured=PUSHED))


def test_a_rule_that_closes_over_an_array_in_a_checkpoint_that_saves_it(flags: None) -> None:
    function = jax.custom_vjp(lambda x: jnp.sin(x) * TABLE)
    function.defvjp(
        lambda x: (function(x), x), jax.checkpoint(lambda x, bar: (bar * jnp.cos(x) * TABLE,))
    )
    saving = jax.checkpoint_policies.everything_saveable
    block = jax.checkpoint(lambda x: jnp.tanh(function(x)), policy=saving)
    loss = lambda theta, eta: jnp.sum(block(block(theta * eta)))  # noqa: E731
    assert_same_meta_gradient(meta_loss(loss), ETA, captured=PUSHED)


@pytest.mark.parametrize("table", [1.0, TABLE], ids=["no constant", "an array"])
def test_by_the_transposed_rule_outside_of_a_compiled_function(flags: None, table: Any) -> None:
    """The rule makes a checkpoint of its own while JAX traces, and pushes the user's forward."""
    through = jax.custom_jvp(lambda x: jnp.round(4 * x) / 4)  # no true derivative: not for FoR
    through.defjvps(lambda bar, _, x: bar)

    def loss(theta: Any, eta: Any) -> Any:
        block = jax.checkpoint(lambda x: jnp.tanh(jnp.sin(x) * table))
        return jnp.sum(through(jnp.exp(jnp.sin(block(theta * eta)))) * jnp.cos(theta))

    def second(grad: Any) -> Any:
        def meta(theta: Any, eta: Any) -> Any:
            index = jnp.array([2, 0, 1])
            return jnp.sum(jnp.sin(grad(lambda t, i: loss(t[i], eta * i))(theta, index)))

        return jax.jit(jax.grad(meta, (0, 1)))(THETA, ETA)

    assert_close(second(mixflow.grad), second(jax.grad))


def test_a_program_without_such_equations_is_the_same_object() -> None:
    closed = jax.make_jaxpr(lambda x: jnp.sin(x) * 2)(ETA)
    assert without_flags(closed) is closed


def test_the_default_pipeline_runs_under_the_flags(flags: None) -> None:
    import mixflow  # noqa: PLC0415

    f = jax.grad(meta_loss(checkpointed_with_a_policy))
    ours = mixflow.compile(f, passes=DEFAULT_PIPELINE)(ETA)
    assert jnp.max(jnp.abs(ours - jax.jit(f)(ETA))) < 1e-12


def test_a_rule_that_calls_its_function_is_mapped_and_differentiated_twice(flags: None) -> None:
    """JAX's own test_custom_vjp_scan_batching_edge_case: the forward rule runs in a mapped scan."""
    scaled = jax.custom_vjp(lambda x, k: x * k)
    scaled.defvjp(lambda x, k: (scaled(x, k), (x, k)), lambda kept, bar: (bar * kept[1], None))

    def row(x: Any, k: Any) -> Any:
        return jax.lax.scan(lambda x, _: (scaled(jnp.sin(x), k), None), x, length=3)[0]

    def pulled(x: Any, k: Any) -> Any:
        y, pull = jax.vjp(jax.vmap(row, in_axes=(0, None)), x, k)
        return pull(jnp.cos(y))

    def twice(x: Any, k: Any) -> Any:
        return jax.vjp(pulled, x, k)[1]((x, k))

    args = THETA, jnp.array(1.2)
    assert_close(mixflow.compile(twice, passes=DEFAULT_PIPELINE)(*args), jax.jit(twice)(*args))
