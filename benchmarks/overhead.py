"""What mixflow adds to tracing: its capture, passes and emission against JAX's own tracing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

import mixflow
from benchmarks.reference import Size, arguments, meta_loss


def _seconds(make: Callable[[], Any], args: tuple[Any, ...]) -> float:
    """Seconds to trace and lower a freshly made function, nothing cached."""
    jax.clear_caches()
    jitted = make()
    start = time.perf_counter()
    jitted.lower(*args)
    return time.perf_counter() - start


def overhead(size: Size, repeats: int = 3) -> dict[str, Any]:
    """Trace-and-lower seconds of plain JAX and of mixflow, interleaved, and their ratio.

    Arguments:
        size: of the reference program.
        repeats: pairs of runs; medians are reported.
    """
    loss = meta_loss(size)
    args = arguments(size)
    plain: list[float] = []
    optimised: list[float] = []
    for _ in range(repeats):
        plain.append(_seconds(lambda: jax.jit(jax.value_and_grad(loss)), args))
        optimised.append(_seconds(lambda: mixflow.compile(jax.value_and_grad(loss)), args))
    medians = statistics.median(plain), statistics.median(optimised)
    return {
        "jax": jax.__version__,
        "plain_s": medians[0],
        "mixflow_s": medians[1],
        "ratio": medians[1] / medians[0],
    }
