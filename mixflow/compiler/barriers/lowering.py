"""Barriers that XLA of JAX 0.10 on CPU compiles right where it keeps them.

`mixflow.compiler_options()` makes that XLA keep `optimization_barrier`, without which it undoes
checkpoints. Then a value has two names in one buffer, before and after the barrier, and XLA looks
at the uses of one of them alone when it lets a kernel write its result over an operand. In

    w = optimization_barrier(v)
    out = v + w[::-1]

`out` takes v's buffer, since the addition reads v entry by entry, and w is overwritten while it is
read. So no array passes a barrier here: a zero does, XLA no longer knows that it is one, and adding
it keeps a second run of the same computation apart from the first as well.

XLA takes an operand out of a barrier if nothing else reads it, or what reads it can compute it
again. A cotangent is such an operand often, and it is what the second run is to wait for: else the
second runs of all steps of an unrolled loop begin at once, and 9 MB become 47. So the zero is
computed from one entry of each operand, too. Not on several devices: to read an entry of an array
that lies on all of them would take communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from mixflow.compiler import jax_compat
from mixflow.compiler.barriers.barrier import barrier_p

MERGES_RUNS = jax.__version_info__ < (0, 11)
"""Whether this JAX's XLA for CPU merges a second run with the first, unless it keeps barriers."""


def install() -> None:
    """Lower all barriers so on CPU, those of checkpoints too."""
    lower_checkpoint = mlir.lower_fun(_checkpoint, multiple_results=True)
    mlir.register_lowering(primitives.remat_p, lower_checkpoint, platform="cpu")
    mlir.register_lowering(barrier_p, _barrier, platform="cpu")


def _checkpoint(
    *args: Any, jaxpr: Any, prevent_cse: bool | tuple[bool, ...], differentiated: bool, policy: Any
) -> Any:
    """What JAX lowers a checkpoint to: its program, behind a barrier where it is a second run.

    The last operand, a cotangent, passes as it is. The first run was before it was there, so
    nothing that is computed from it can be merged with that, and to add to it takes a copy.
    """
    del policy
    waits = [prevent_cse] * len(args) if isinstance(prevent_cse, bool) else prevent_cse
    operands = list(args)
    positions = [position for position, wait in enumerate(waits) if differentiated and wait]
    held = jax.lax.optimization_barrier([operands[position] for position in positions])
    for position, value in zip(positions[:-1] or positions, held, strict=False):
        operands[position] = value
    return jax.core.eval_jaxpr(jaxpr, (), *operands)


def _barrier(ctx: Any, *args: Any) -> Sequence[Any]:
    """A zero of each dtype waits for all operands, and is added to those of its dtype."""
    if not args:
        return []
    # Where nothing is added, what passes the barrier is taken: the dtype is None.
    added = [aval.dtype if _adds(aval) else None for aval in ctx.avals_in]
    dtypes = dict.fromkeys(dtype for dtype in added if dtype is not None)
    operands, _ = mlir.ir_tree_registry.flatten(args)
    held = stablehlo.OptimizationBarrierOp([*operands, mlir.ir_constant(np.int32(0))]).results
    late = args if jax_compat.is_for_one_device(ctx) else ()
    avals = [jax.core.ShapedArray((), np.dtype(np.int32)), *ctx.avals_in[: len(late)]]
    made = mlir.lower_fun(partial(_zeros, tuple(dtypes)), multiple_results=True)
    waiting = dict(zip(dtypes, made(ctx.replace(avals_in=avals), held[-1], *late), strict=True))
    return [
        own if dtype is None else _added(arg, waiting[dtype], dtype)
        for arg, dtype, own in zip(args, added, held[:-1], strict=True)
    ]


def _zeros(dtypes: Sequence[Any], zero: Any, *args: Any) -> list[Any]:
    """A zero of each dtype that is not there before every operand is.

    Added to anything, 0.0 included, -0.0 changes no bit.
    """
    floats = [arg for arg in args if jnp.issubdtype(arg.dtype, jnp.floating)]
    arrays = [arg for arg in floats if all(isinstance(n, int) and n > 0 for n in arg.shape)]
    if arrays:
        firsts = [jax.lax.slice(arg, [0] * arg.ndim, [1] * arg.ndim) for arg in arrays]
        positive = jnp.array([first.reshape(()) > 0 for first in firsts])
        zero = zero * jnp.sum(positive, dtype=jnp.int32)
    return [zero.astype(dtype) if dtype.kind == "b" else -zero.astype(dtype) for dtype in dtypes]


def _adds(aval: Any) -> bool:
    """Whether a zero can be added to an operand.

    What it cannot be added to passes the barrier: keys, tokens, floats of eight bits, and sizes
    that are not known yet.
    """
    if not all(isinstance(size, int) for size in getattr(aval, "shape", (None,))):
        return False
    kinds = jnp.bool_, jnp.integer, jnp.inexact
    is_number = any(jnp.issubdtype(aval.dtype, kind) for kind in kinds)
    return is_number and (aval.dtype.itemsize > 1 or not jnp.issubdtype(aval.dtype, jnp.inexact))


def _added(arg: Any, zero: Any, dtype: Any) -> Any:
    zeros = stablehlo.broadcast_in_dim(arg.type, zero, mlir.dense_int_array([]))
    return stablehlo.or_(arg, zeros) if dtype.kind == "b" else stablehlo.add(arg, zeros)
