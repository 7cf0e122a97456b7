"""What a compiled program costs, by XLA's own figures and by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_map

from mixflow.compiler.analysis.costs import program_cost
from mixflow.errors import InputError
from mixflow.runtime.arguments import Arguments, has_open_sizes

_RUNS = 3


@dataclass(frozen=True)
class Measurement:
    """What one compiled program costs.

    Arguments:
        temp_bytes: XLA's temporaries, in bytes.
        flops: floating-point operations by mixflow's cost model, trip counts included; None
            where a trip count is unknown.
        eqns: equations of the program as JAX lowers it, derivatives spelled out.
        compile_s: seconds to trace, lower and compile.
        run_s: median seconds of a run; None where it was not run.
        total_bytes: arguments + outputs + temporaries - aliased, in bytes.
    """

    temp_bytes: int
    flops: float | None
    eqns: int
    compile_s: float
    run_s: float | None
    total_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Program:
    """A function that was compiled and measured.

    Arguments:
        lowered: what JAX lowered, for its StableHLO text.
        compiled: the executable.
        measurement: its figures.
    """

    lowered: jax.stages.Lowered
    compiled: jax.stages.Compiled
    measurement: Measurement


def measure(
    jitted: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    run: bool,
    static: Mapping[str, Any] | None = None,
) -> Program:
    """Compile a function and take its figures.

    Arguments:
        jitted: has `.trace`, as `jax.jit(f)` and `mixflow.compile(f)` do.
        args, kwargs: arrays or `jax.ShapeDtypeStruct`.
        run: also time it; shapes are then filled with `concrete`.
        static: the jit options that say what is static.

    Raises:
        InputError: a size is symbolic. XLA compiles, and counts bytes of, known sizes alone.
    """
    if has_open_sizes(Arguments(jitted, static or {}).traced(args, kwargs)):
        raise InputError(
            f"the arguments of {jitted.__name__} have symbolic sizes, and figures are of known "
            "ones: give numbers in their place (a program can be exported with symbolic ones)"
        )
    start = time.perf_counter()
    traced = jitted.trace(*args, **kwargs)
    lowered = traced.lower()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    cost = program_cost(traced.jaxpr)
    run_s = None
    if run:
        traced_args = Arguments(jitted, static or {}).traced(args, kwargs)
        run_s = _median_run(compiled, *concrete(traced_args))
    temp = memory.temp_size_in_bytes
    return Program(
        lowered,
        compiled,
        Measurement(temp, cost.flops, cost.eqns, compile_s, run_s, total_bytes(compiled)),
    )


def total_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of arguments + results + temporaries - aliased, per device, by XLA's own account."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _median_run(
    compiled: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> float:
    times: list[float] = []
    for _ in range(_RUNS + 1):
        own_args, own_kwargs = copied((args, kwargs))  # the program may take them by donation
        start = time.perf_counter()
        jax.block_until_ready(compiled(*own_args, **own_kwargs))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first run warms up


def copied(tree: Any) -> Any:
    """The same values in buffers of their own."""
    return tree_map(lambda x: jnp.array(x) if isinstance(x, (jax.Array, np.ndarray)) else x, tree)


def concrete(tree: Any, seed: int = 0) -> Any:
    """Arrays for shapes: small normal numbers, zeros for integers, a key for keys."""
    return tree_map(lambda leaf: _concrete_leaf(leaf, seed), tree)


def _concrete_leaf(leaf: Any, seed: int) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    key = jax.random.key(seed)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(key, leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return 0.1 * jax.random.normal(key, leaf.shape, leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)
