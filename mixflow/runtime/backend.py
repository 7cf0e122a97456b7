"""What a backend needs from whoever compiles for it."""

from __future__ import annotations

from dataclasses import replace

import jax

from mixflow.compiler.barriers.lowering import MERGES_RUNS
from mixflow.planner.device import Device, device_of

# JAX 0.10 on CPU undoes jax.checkpoint in straight-line code: XLA merges the recomputation with
# the original once the barriers between them are gone. Where they stay, small loops must not be
# turned into one kernel, which cannot hold a barrier. JAX 0.12 needs nothing.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander,small-while-loop-hoisting"}


def compiler_options(backend: str | None = None) -> dict[str, str | bool]:
    """XLA options that a program rewritten by mixflow should be compiled with.

    `mixflow.compile` sets them itself. They belong to the outermost `jax.jit`, so where a
    compiled function is traced into one of yours, pass them there: `jax.jit(f,
    compiler_options=mixflow.compiler_options())`.

    Arguments:
        backend: a platform name, such as "cpu" or "gpu"; by default the one that JAX would use.

    Returns:
        The options by name; empty where none are needed, as on JAX 0.12.
    """
    return dict(_KEEP_BARRIERS) if _undoes_checkpoints(backend or jax.default_backend()) else {}


def planning_device(*, options_are_ours: bool) -> Device:
    """The device that a plan is made for.

    Arguments:
        options_are_ours: whether mixflow compiles the program. In somebody else's jit it cannot
            set `compiler_options`.
    """
    platform = jax.default_backend()
    keeps = options_are_ours or not _undoes_checkpoints(platform)
    return replace(device_of(platform), keeps_barriers=keeps)


def _undoes_checkpoints(platform: str) -> bool:
    return platform == "cpu" and MERGES_RUNS
