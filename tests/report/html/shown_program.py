"""A small program with something for each section of a report: levels, segments, a decline."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import mixflow

PASSES = (
    "canonicalize,cse,fuse-value-and-pullback,canonicalize,forward-over-reverse,"
    "checkpoint-inner-loop{levels=2},save-inner-gradients,segment-loss"
)


@jax.custom_vjp
def rounded(x):
    return jnp.round(x)


rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))


def loss(theta, eta, x):
    for _ in range(4):
        x = jnp.sin(jnp.tanh(x @ theta) * eta)
    return jnp.mean(x**2)


def penalty(theta):
    return jnp.sum(rounded(theta) ** 2)


@mixflow.compile(passes=PASSES)
def meta_loss(eta, theta, xs):
    def step(theta, x):
        gradient = jax.grad(loss)(theta, eta, x)  # the inner gradient
        return theta - 0.1 * eta * gradient * gradient - 0.01 * jax.grad(penalty)(theta), None

    return loss(jax.lax.scan(step, theta, xs[:-1])[0], 1.0, xs[-1])


@meta_loss.example_args
def _():
    shapes = ((), (8, 8), (10, 64, 8))
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
