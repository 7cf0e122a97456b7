"""The memory model's rules one by one: small programs whose peak is known, and is XLA's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from mixflow.compiler.memory.liveness import peak_memory
from mixflow.compiler.memory.lowering import lower

A = jnp.ones((64, 64), jnp.float32)
SIZE = 4 * 64 * 64


def softmax_of_products(a: Any) -> Any:
    e = jnp.exp(a @ a)
    return (e / jnp.sum(e, 1, keepdims=True)) @ a


def product_and_its_product(a: Any) -> Any:
    product = a @ a
    return product, product @ a


def times_one(a: Any) -> Any:
    product = a @ a
    return product @ (1.0 * product)


def read_twice(a: Any) -> Any:
    product = a @ a
    return product @ jnp.sin(product)


PEAKS: dict[str, tuple[float, Callable[[Any], Any]]] = {
    "a result is no temporary": (0, lambda a: a @ a),
    "nor is one that is read as well": (0, product_and_its_product),
    "what a result is computed from": (1, lambda a: a @ a @ a),
    "two products at a time": (2, lambda a: a @ a @ a @ a @ a),
    "neutral operands of sums and products": (1, lambda a: (1.0 * (a @ a) + 0.0) @ a),
    "neutral operands of differences": (1, lambda a: ((a @ a - 0.0) / 1.0) @ a),
    "a product with one is no second array": (1, times_one),
    "a sum with zeros but for a row": (
        1,
        lambda a: (a @ a + jnp.zeros_like(a).at[0].add(a[1])) @ a,
    ),
    "a row set in place": (1, lambda a: (a @ a).at[0].set(a[1]) @ a),
    "another shape": (1, lambda a: (a @ a).reshape(-1).reshape(64, 64) @ a),
    "a product that is read transposed": (1, lambda a: (a @ a).T @ a),
    "transposed twice": (1, lambda a: ((a @ a).T @ a).T @ a),
    "element by element, in place": (1, lambda a: jnp.sin(a @ a) @ a),
    "not in place where it is read twice": (2, read_twice),
    "a sum is fused into its result": (0, lambda a: jnp.sum(a @ a)),
    "a row of each sum": (1 + 1 / 64, softmax_of_products),
    "parts and the whole": (3, lambda a: jnp.concatenate([a @ a, a @ a.T]) @ a),
    "half of a product": (1.5, lambda a: (a @ a)[:32] @ a),
    "what a loop stacks, its state and its next": (
        12,
        lambda a: jnp.sum(lax.scan(lambda c, _: (c @ c, c), a, None, length=10)[1] @ a),
    ),
    "the worst branch": (
        1,
        lambda a: lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a),
    ),
}


@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_in_arrays_of_one_size(name: str) -> None:
    expected, f = PEAKS[name]
    traced = jax.jit(f).trace(A)
    estimate = peak_memory(traced.jaxpr).bytes / SIZE
    analysis = traced.lower().compile().memory_analysis()
    assert analysis is not None
    xla = analysis.temp_size_in_bytes / SIZE
    # A few bytes are counters and predicates.
    assert estimate == pytest.approx(expected, abs=0.01)
    assert xla == pytest.approx(expected, abs=0.01)


def test_a_product_is_written_transposed() -> None:
    """XLA swaps the operands; nothing is transposed after it."""
    graph = lower(jax.make_jaxpr(lambda a, b: jnp.sin((a @ b).T))(A[:8], A))
    assert [value.name for value in graph.values if value.reads] == ["dot_general", "sin"]
