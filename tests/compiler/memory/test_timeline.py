"""The memory timeline: its highest point is the peak, however few points are kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from mixflow.compiler.memory.liveness import peak_memory
from mixflow.compiler.memory.timeline import Point, memory_timeline, thinned

A = jnp.ones((32, 32))


def chain(a):
    return a @ a @ a @ a @ a @ a @ a @ a @ a


def looped(a):
    def body(c, _):
        return jnp.tanh(c @ a) @ a, c

    return jax.lax.scan(body, a, length=5)[1].sum() + jnp.sum(a @ a)


def branched(a):
    return jax.lax.cond(a[0, 0] > 0, lambda: jnp.sum((a @ a) @ (a @ a.T)), lambda: jnp.sum(a))


@pytest.mark.parametrize("f", [chain, looped, branched, jax.grad(looped)])
@pytest.mark.parametrize("most", [400, 3])
def test_the_highest_point_is_the_peak(f, most):
    closed = jax.make_jaxpr(f)(A)
    timeline = memory_timeline(closed, most)
    assert max(point.bytes for point in timeline.points) == peak_memory(closed).bytes > 0
    assert len(timeline.points) <= most


def test_points_are_in_order_and_have_source_lines():
    timeline = memory_timeline(jax.make_jaxpr(looped)(A))
    steps = [point.step for point in timeline.points]
    assert steps == sorted(set(steps))
    assert timeline.steps > steps[-1]
    body = looped.__code__.co_firstlineno + 2
    assert any(point.at.endswith(f"test_timeline.py:{body}") for point in timeline.points)


def test_points_name_what_is_computed():
    points = memory_timeline(jax.make_jaxpr(looped)(A)).points
    kind = jax.typeof(A).str_short(short_dtypes=True)
    assert {("dot_general", kind), ("tanh", kind)} <= {(one.primitive, one.aval) for one in points}
    assert ("scan", "") in {(one.primitive, one.aval) for one in points}


def test_a_chain_frees_what_it_has_read():
    points = memory_timeline(jax.make_jaxpr(chain)(A)).points
    held = [point.bytes // A.nbytes for point in points if point.bytes]
    assert len(held) > 6
    assert set(held) == {1, 2}


def test_thinning_keeps_the_highest_of_each_run():
    points = [Point(step, step % 7, "", "mul", "f32[]") for step in range(100)]
    kept = thinned(points, 10)
    assert len(kept) == 10
    assert {point.bytes for point in kept} == {6}
    assert thinned(points, 100) == points
