"""segment-loss: differentiated straight-line code is rerun in segments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from checking import (
    assert_idempotent,
    assert_memory_falls,
    assert_right,
    check,
    ir,
    optimised,
    run_and_measure,
)
from support import assert_close

import mixflow
from mixflow.compiler.analysis.costs import program_cost
from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp

NAME = "segment-loss"
BEFORE = "canonicalize,cse,fuse-value-and-pullback,canonicalize,forward-over-reverse"
LOOP = f"{BEFORE},checkpoint-inner-loop,save-inner-gradients"


def deep(theta, x):
    """Layers in a straight line: what passes between them is small, what they keep is not."""
    for inward, outward in theta:
        x = x + jnp.sin(jnp.tanh(x @ inward) ** 2) @ outward
    return x


def deep_loss(theta, eta, x):
    return jnp.mean(jax.nn.sigmoid(eta) * jnp.sum((deep(theta, x) - 1.0) ** 2, 1))


def deep_meta_loss(eta, theta, xs):
    def step(theta, x):
        gradient = jax.grad(deep_loss)(theta, eta, x)
        return jax.tree.map(lambda t, g: t - 0.1 * g, theta, gradient), None

    theta, _ = jax.lax.scan(step, theta, xs[:-1])
    return deep_loss(theta, jnp.zeros_like(eta), xs[-1])


def deep_args(layers=6, batch=6, width=4, wide=16, steps=2):
    keys = jax.random.split(jax.random.key(0), 2 * layers + 1)
    shapes = [(width, wide), (wide, width)] * layers
    flat = [jax.random.normal(key, shape) / 4 for key, shape in zip(keys[1:], shapes, strict=True)]
    theta = list(zip(flat[::2], flat[1::2], strict=True))
    xs = jax.random.normal(keys[0], (steps + 1, batch, width))
    return jnp.linspace(-1.0, 1.0, batch), theta, xs


LARGE = {"layers": 12, "batch": 256, "width": 8, "wide": 64}


def scanned(theta, x):
    """The same kind of layers, in a scan."""

    def layer(x, weights):
        inward, outward = weights
        return x + jnp.sin(jnp.tanh(x @ inward) ** 2) @ outward, None

    return jax.lax.scan(layer, x, theta)[0]


def scanned_meta_loss(eta, theta, xs):
    def loss(theta, x):
        return jnp.mean(jax.nn.sigmoid(eta) * jnp.sum((scanned(theta, x) - 1.0) ** 2, 1))

    def step(theta, x):
        return jax.tree.map(lambda t, g: t - 0.1 * g, theta, jax.grad(loss)(theta, x)), None

    theta, _ = jax.lax.scan(step, theta, xs[:-1])
    return jnp.mean(scanned(theta, xs[-1]) ** 2)


def scanned_args(**sizes):
    eta, theta, xs = deep_args(**sizes)
    return eta, tuple(jnp.stack(weights) for weights in zip(*theta, strict=True)), xs


# --- fires ------------------------------------------------------------------------------------


def test_an_inner_loss_and_the_outer_objective_are_cut():
    text = ir(f"{BEFORE},{NAME}", jax.grad(deep_meta_loss), *deep_args())
    assert text.count("segments are rerun from what they are given") == 2
    assert text.count("jaxpr.checkpoint inline") >= 6


def test_a_function_that_is_differentiated_outside_is_cut():
    loss = lambda theta, x: jnp.sum(deep(theta, x))  # noqa: E731
    _, theta, xs = deep_args()
    assert "checkpoint inline" in ir(NAME, loss, theta, xs[0], differentiated=True)
    assert "checkpoint inline" not in ir(NAME, loss, theta, xs[0])


def test_a_loop_over_layers_has_a_checkpointed_body():
    check(
        ir(f"{BEFORE},{NAME}", jax.grad(scanned_meta_loss), *scanned_args()),
        """
        CHECK: mixflow.vjp [symmetric rule]
        CHECK: jaxpr.scan 6 steps{{.*}}each of the 6 steps saves its inputs, and is rerun
        CHECK-NEXT: ^bb0
        CHECK-NEXT: jaxpr.checkpoint(
        """,
    )


def test_a_nested_jit_is_cut_too():
    def meta_loss(eta, theta, xs):
        return jax.grad(lambda t: jax.jit(deep_loss)(t, eta, xs[0]))(theta)[0][0].sum()

    text = ir(f"{BEFORE},{NAME}", jax.grad(meta_loss), *deep_args())
    assert "checkpoint inline" in text
    assert_right(meta_loss, *deep_args(), passes=f"{BEFORE},{NAME}")


def test_what_is_cheap_and_inactive_is_copied_into_each_segment():
    def loss(theta, x):
        for weights in theta:
            causal = jnp.tril(jnp.ones((32, 32), bool))
            x = jax.nn.softmax(jnp.where(causal, jnp.sin(x @ weights), -9.0)) @ weights
        return jnp.sum(x)

    args = [jnp.eye(32)] * 4, jnp.ones((32, 32))
    text = ir(NAME, jax.grad(loss), *args)
    assert "iota" in text.split("jaxpr.checkpoint inline")[1]


def barriers_of(layer):
    """The barriers of a loss's segments: those of parameters, and those of all else."""

    def loss(theta, x):
        for one in theta:
            x = jnp.sin(jnp.tanh(layer(one, x)) ** 2) @ one["outward"]
        return jnp.sum(x)

    shapes = {"inward": (4, 16), "outward": (16, 4), "left": (4, 1), "right": (1, 16)}
    theta = [{name: jnp.ones(shape) for name, shape in shapes.items()}] * 6
    f = mixflow.compile(jax.grad(loss), passes=f"{BEFORE},{NAME}")
    found = {True: [], False: []}
    module = f.optimised(theta, jnp.ones((64, 4))).module
    assert module is not None
    for op in module.walk():
        if isinstance(op, CheckpointOp) and op.barriers is not None:
            for value, barrier in zip(op.inputs, op.barriers.get_values(), strict=True):
                found[value.type.data.shape[0] != 64].append(bool(barrier))
    return found[True], found[False]


def test_the_second_run_does_not_wait_for_parameters():
    """So XLA may gather parameters that are sharded once for both runs."""
    parameters, others = barriers_of(lambda one, x: x @ one["inward"])
    assert parameters
    assert not any(parameters)
    assert all(others)


def test_the_second_run_waits_for_what_something_is_computed_from_alone():
    """XLA would keep the product of two parameters from the first run to the second."""
    parameters, _ = barriers_of(lambda one, x: x @ (one["left"] @ one["right"]))
    assert any(parameters)


def test_a_segment_of_nothing_but_parameters_waits():
    def loss(theta):
        x = theta[0]["inward"]
        for one in theta:
            x = jnp.sin(jnp.tanh(x @ one["outward"]) ** 2) @ one["inward"]
        return jnp.sum(x)

    theta = [{"inward": jnp.ones((4, 64)), "outward": jnp.ones((64, 4))}] * 6
    f = mixflow.compile(jax.grad(loss), passes=f"{BEFORE},{NAME}")
    module = f.optimised(theta).module
    assert module is not None
    segments = [op for op in module.walk() if isinstance(op, CheckpointOp)]
    barriers = [op.barriers.get_values() for op in segments if op.barriers is not None]
    assert barriers
    assert all(map(any, barriers))


def test_idempotent():
    assert_idempotent(f"{BEFORE},", NAME, jax.grad(deep_meta_loss), *deep_args())


# --- does not fire ----------------------------------------------------------------------------


def test_not_what_nobody_differentiates():
    text = ir(f"{BEFORE},{NAME}", deep_loss, *deep_args()[1::-1], jnp.ones((6, 4)))
    assert "checkpoint" not in text


def test_not_where_the_slack_is_enough():
    assert "inline" not in ir(
        f"{BEFORE},{NAME}{{slack=1000000000}}", jax.grad(deep_meta_loss), *deep_args()
    )
    text = ir(f"{BEFORE},{NAME}{{slack=1000000000}}", jax.grad(scanned_meta_loss), *scanned_args())
    assert "checkpoint" not in text


def test_your_own_checkpoints_stay_as_they_are():
    def loss(theta, x):
        for weights in theta:
            x = jax.checkpoint(lambda x, w: jnp.sin(jnp.tanh(x @ w) ** 2))(x, weights)
        return jnp.sum(x)

    text = ir(f"{BEFORE},{NAME}", jax.grad(loss), [jnp.eye(4)] * 3, jnp.ones((8, 4)))
    assert text.count("jaxpr.checkpoint(") == 3


def test_what_has_effects_does_not_happen_twice():
    seen = []

    def loss(theta, x):
        for weights in theta:
            x = jnp.sin(jnp.tanh(x @ weights) ** 2)
            jax.debug.callback(lambda: seen.append(1))
        return jnp.sum(x)

    args = [jnp.eye(8)] * 4, jnp.ones((64, 8))
    result = mixflow.compile(jax.grad(loss), passes=NAME)(*args)
    jax.effects_barrier()
    assert len(seen) == 4
    assert_close(result, jax.grad(loss)(*args))


# --- numbers and memory -----------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "{rerun=3.0}", "{slack=20000}"])
def test_the_same_numbers(options):
    assert_right(deep_meta_loss, *deep_args(), passes=f"{LOOP},{NAME}{options}")
    assert_right(scanned_meta_loss, *scanned_args(), passes=f"{LOOP},{NAME}{options}")


def test_the_same_numbers_under_vmap():
    eta, theta, xs = deep_args()
    etas = jnp.stack([eta, -eta])
    mapped = jax.vmap(jax.grad(deep_meta_loss), (0, None, None))
    result = mixflow.compile(mapped, passes=f"{LOOP},{NAME}")(etas, theta, xs)
    assert_close(result, jax.jit(mapped)(etas, theta, xs))


def test_random_numbers_are_drawn_again_as_they_were():
    def loss(theta, key, x):
        for place, weights in enumerate(theta):
            mask = jax.random.bernoulli(jax.random.fold_in(key, place), 0.7, x.shape)
            x = jnp.sin(jnp.tanh(jnp.where(mask, x, 0.0) @ weights) ** 2)
        return jnp.sum(x)

    args = [jax.random.normal(jax.random.key(1), (8, 8))] * 5, jax.random.key(0), jnp.ones((64, 8))
    result = mixflow.compile(jax.grad(loss), passes=NAME)(*args)
    assert "inline" in ir(NAME, jax.grad(loss), *args)
    assert_close(result, jax.jit(jax.grad(loss))(*args))


def test_a_deep_inner_loss_takes_less_memory():
    assert_memory_falls(deep_meta_loss, deep_args(**LARGE), (LOOP, 0.8), (f"{LOOP},{NAME}", 0.45))


def test_a_loop_over_layers_takes_less_memory():
    assert_memory_falls(
        scanned_meta_loss, scanned_args(**LARGE), (LOOP, 0.8), (f"{LOOP},{NAME}", 0.6)
    )


def test_a_loop_over_layers_with_a_custom_rule_takes_no_more():
    smooth = jax.custom_vjp(lambda x: jax.nn.gelu(x))  # noqa: PLW0108
    smooth.defvjp(lambda x: (smooth(x), x), lambda x, g: (jax.vjp(jax.nn.gelu, x)[1](g)[0],))

    keys = jax.random.split(jax.random.key(0))
    x, weights = jax.random.normal(keys[0], (512, 16)), jax.random.normal(keys[1], (16, 16, 16)) / 4

    def meta_gradient(activation):
        def loss(weights, eta):
            h, _ = jax.lax.scan(lambda h, w: (activation(h @ w), None), x, weights)
            return jnp.mean(h**2 * eta)

        return jax.grad(lambda eta: jnp.sum(jax.grad(loss)(weights, eta) ** 2))

    passes = f"{BEFORE.replace('forward-over-reverse', 'reverse-over-forward')},{NAME}"
    rule, plain = (
        mixflow.compile(meta_gradient(activation), passes=passes)
        for activation in (smooth, jax.nn.gelu)
    )
    result, bytes_of_rule = run_and_measure(rule, jnp.ones(16))
    assert_close(result, jax.jit(meta_gradient(smooth))(jnp.ones(16)))
    assert bytes_of_rule <= 1.25 * run_and_measure(plain, jnp.ones(16))[1]


def test_first_order_gradients_take_less_memory():
    _, theta, xs = deep_args(**LARGE)
    gradient = jax.grad(lambda theta, x: jnp.sum(deep(theta, x)))
    expected, before = run_and_measure(jax.jit(gradient), theta, xs[0])
    result, after = run_and_measure(mixflow.compile(gradient, passes=NAME), theta, xs[0])
    assert_close(result, expected)
    assert after < 0.5 * before


def flops(passes, args):
    cost = program_cost(optimised(passes, jax.grad(deep_meta_loss), *args).jaxpr)
    assert cost.flops is not None
    return cost.flops


def test_more_slack_runs_less_again():
    args = deep_args(**LARGE)
    options = ("{rerun=3.0}", "", "{slack=3000000}", "{slack=100000000}")
    found = [flops(f"{LOOP},{NAME}{option}", args) for option in options]
    assert found == sorted(found, reverse=True)
    assert found[1] > 1.1 * found[-1]
