"""What a backend needs from whoever compiles for it."""

from __future__ import annotations

import jax

# JAX 0.10 on CPU undoes jax.checkpoint in straight-line code: XLA merges the recomputation with
# the original once the barriers between them are gone. Where they stay, small loops must not be
# turned into one kernel, which cannot hold a barrier. JAX 0.12 needs nothing.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander,small-while-loop-hoisting"}
_FIXED_IN = (0, 11)


def compiler_options(backend: str | None = None) -> dict[str, str | bool]:
    """XLA options that a program rewritten by mixflow should be compiled with.

    `mixflow.compile` sets them itself. They belong to the outermost `jax.jit`, so where a
    compiled function is traced into one of yours, pass them there: `jax.jit(f,
    compiler_options=mixflow.compiler_options())`.

    Arguments:
        backend: a platform name; by default the one that JAX would use.
    """
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    is_cpu = (backend or jax.default_backend()) == "cpu"
    return dict(_KEEP_BARRIERS) if is_cpu and version < _FIXED_IN else {}
