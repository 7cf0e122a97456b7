"""The estimate of the peak: by hand on small programs, and against XLA."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from checking import MANY_EXAMPLES, MANY_PARAMETERS, adaptive_meta_loss, meta_args, meta_loss

import mixflow
from mixflow.compiler.memory.liveness import peak_memory
from mixflow.passes import DEFAULT_PIPELINE

A = jnp.ones((64, 64), jnp.float32)
SIZE = 4 * 64 * 64


def peak(f, *args):
    return peak_memory(jax.make_jaxpr(f)(*args))


def test_a_chain_of_products_holds_two_at_a_time():
    assert SIZE <= peak(lambda a: a @ a @ a @ a @ a, A).bytes <= 2 * SIZE


def test_what_is_fused_takes_nothing():
    assert peak(lambda a: jnp.sin(a) * 2.0 + a, A).bytes < SIZE / 4


def test_dead_code_takes_nothing():
    def f(a):
        _ = (a @ a) @ a
        return jnp.sum(a)

    assert peak(f, A).bytes < SIZE / 4


def test_what_a_scan_stacks_lives_outside_of_it():
    def f(a):
        _, stacked = jax.lax.scan(lambda c, _: (c @ c, c), a, None, length=10)
        return jnp.sum(stacked @ a)

    assert peak(f, A).bytes >= 10 * SIZE


def test_who_is_alive_is_named_with_its_line():
    def f(a):
        return (a @ a) @ (a + a @ a.T)

    alive = peak(f, A).alive
    assert alive[0].bytes == SIZE
    assert "test_liveness.py" in alive[0].at
    assert "64,64" in alive[0].aval


PIPELINES = {
    "step": "canonicalize,cse,fuse-value-and-pullback,checkpoint-inner-loop",
    "unsegmented": DEFAULT_PIPELINE.removesuffix(",segment-loss"),
}


@pytest.mark.parametrize("passes", [None, *PIPELINES])
@pytest.mark.parametrize("f", [meta_loss, adaptive_meta_loss])
@pytest.mark.parametrize("sizes", [MANY_EXAMPLES, MANY_PARAMETERS], ids=["examples", "parameters"])
def test_it_is_near_xla_s_own_figure(f, sizes, passes):
    args = meta_args(**sizes)
    gradient = jax.value_and_grad(f)
    if passes is None:
        compiled = jax.jit(gradient)
    else:
        compiled = mixflow.compile(gradient, passes=PIPELINES[passes])
    traced = compiled.trace(*args)
    memory: Any = traced.lower().compile().memory_analysis()
    truth = memory.temp_size_in_bytes
    assert 0.7 * truth <= peak_memory(traced.jaxpr).bytes <= 1.3 * truth


def pooled(x, start, combine):
    return jax.lax.reduce_window(x, start, combine, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_pullback_of_max_pooling_needs_the_places_of_all_elements(layers, flat):
    """Flat: the images are pixels in a row but for the pooling, which only looks at them anew."""
    shape = (16, 8, 8, 4)

    def f(x, w):
        for _ in range(layers):
            x = pooled(x.reshape(shape), -jnp.inf, jax.lax.max).reshape(w.shape)
            x = jnp.tanh(x * w)
        return jnp.sum(x)

    images = jnp.ones((16, 8 * 8 * 4) if flat else shape)
    traced = jax.jit(jax.grad(f)).trace(images, 2 * images)
    memory: Any = traced.lower().compile().memory_analysis()
    truth = memory.temp_size_in_bytes
    estimate = peak_memory(traced.jaxpr)
    assert 0.75 * truth <= estimate.bytes <= 1.25 * truth
    assert sum(one.primitive == "iota" for one in estimate.alive) == 4 * layers


def mixed_meta_loss(weights, theta, xs):
    """Two steps of descent, computed in the dtype of xs, on parameters that stay as they are."""

    def loss(theta, x):
        h = x
        for w in theta:
            h = jnp.tanh(h @ w.astype(x.dtype)) + h
        return jnp.sum(weights * jnp.mean(h.astype(weights.dtype) ** 2, -1))

    def step(theta, x):
        return jax.tree.map(lambda p, g: p - 0.1 * g, theta, jax.grad(loss)(theta, x)), None

    return loss(jax.lax.scan(step, theta, xs)[0], xs[0])


@pytest.mark.parametrize("passes", ["step", "segmented"])
@pytest.mark.parametrize(("stored", "computed"), [("float32", "bfloat16"), ("float64", "float64")])
def test_it_is_near_in_half_and_in_double_precision(stored, computed, passes):
    theta = [jnp.ones((64, 64), stored) / 16] * 4
    args = jnp.ones(512, stored), theta, jnp.ones((2, 512, 64), computed)
    pipeline = {**PIPELINES, "segmented": DEFAULT_PIPELINE}[passes]
    compiled = mixflow.compile(jax.value_and_grad(mixed_meta_loss), passes=pipeline)
    traced = compiled.trace(*args)
    memory: Any = traced.lower().compile().memory_analysis()
    truth = memory.temp_size_in_bytes
    assert 0.85 * truth <= peak_memory(traced.jaxpr).bytes <= 1.15 * truth


def test_casts_are_rerun_and_not_saved():
    """Six parameters in half precision would be 0.8 MB beside 8.3, and the rest takes less."""

    def temporaries(computed):
        theta = [jnp.ones((256, 256), "float32") / 16] * 6
        args = jnp.ones(32, "float32"), theta, jnp.ones((2, 32, 256), computed)
        compiled = mixflow.compile(jax.value_and_grad(mixed_meta_loss), passes=DEFAULT_PIPELINE)
        memory: Any = compiled.lower(*args).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert temporaries("bfloat16") <= temporaries("float32")
