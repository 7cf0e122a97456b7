"""`mixflow.compile`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, overload

import jax

from mixflow.errors import InputError
from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.options import Options


@overload
def compile(fun: Callable[..., Any], **options: Any) -> CompiledFunction: ...


@overload
def compile(**options: Any) -> Callable[[Callable[..., Any]], CompiledFunction]: ...


def compile(  # noqa: PLR0913 - each is a keyword that a user writes
    fun: Callable[..., Any] | None = None,
    *,
    passes: str | None = None,
    memory_budget: str | float | None = None,
    autotune: bool = False,
    assume_symmetric: str | tuple[str, ...] | list[str] = (),
    respect_checkpoints: bool = False,
    roll: bool = True,
    verify: bool = False,
    **jit_options: Any,
) -> Any:
    """Compile a function whose insides differentiate through gradient steps.

    Works bare or with options, on plain functions and on `jax.grad(f)`; the result behaves as
    `jax.jit(fun)` does: call it with arrays, or under `jit`, `grad`, `vmap`, `shard_map`.

    Arguments:
        fun: plain JAX. Every `jax.grad`, `jax.value_and_grad`, `jax.vjp` in it is seen.
        passes: the pipeline, in xDSL's syntax, in place of the planner's choice; `mixflowc
            passes` lists what there is.
        memory_budget: the most memory per device, for arguments, results and temporaries: bytes,
            text such as "8GiB", or a share of the device's memory. The fastest plan within it is
            taken. Without one, the plan is a balance of memory and time (`docs/plans.md`).
        autotune: choose between the best plans by compiling and running each of them.
        assume_symmetric: "all", or names of functions whose custom derivative rules you vouch
            for as true derivatives (`docs/derivative-rule.md`).
        respect_checkpoints: leave every `jax.checkpoint` of yours as it is. Without it, one around
            an inner step that has no policy may be replaced by another choice of what to save.
        roll: make loops of code that was unrolled in Python, where that pays: equal layers, equal
            inner steps, equal tasks.
        verify: run the original as well on every call, and raise on a difference.
        jit_options: what `jax.jit` takes: `static_argnums`, `static_argnames`,
            `donate_argnums`, `in_shardings`, …

    Returns:
        A `CompiledFunction`.

    Raises:
        InputError: malformed `passes`, `memory_budget` or `assume_symmetric`, an unknown option,
            `passes` with `respect_checkpoints` or `roll`, no function.
        BudgetError: from calls, where no plan needs so little memory.
        VerificationError: from calls, with `verify`.

    Source: Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation" (ICML 2025,
    arXiv 2505.00793).
    """
    unknown = jit_options.keys() - inspect.signature(jax.jit).parameters.keys()
    if unknown:
        raise InputError(f"mixflow.compile takes no option {min(unknown)!r}, nor does jax.jit")
    compiler = jit_options.pop("compiler_options", None)
    if passes is not None and respect_checkpoints:
        raise InputError(
            "respect_checkpoints is for the planner: with passes=, write "
            "checkpoint-inner-loop{respect=true}"
        )
    if passes is not None and not roll:
        raise InputError("roll is for the planner: in passes=, leave roll-repeated-blocks out")
    options = Options(
        passes,
        memory_budget,
        autotune,
        _names(assume_symmetric),
        respect_checkpoints,
        roll,
        verify,
        jit_options,
        compiler,
    )
    if fun is None:
        return lambda fun: CompiledFunction(fun, options)
    if not callable(fun):
        raise InputError(f"mixflow.compile takes a function, not {type(fun).__name__}")
    return CompiledFunction(fun, options)


def _names(assume_symmetric: Any) -> str | tuple[str, ...]:
    if assume_symmetric == "all":
        return "all"
    named = [assume_symmetric] if isinstance(assume_symmetric, str) else assume_symmetric
    if not isinstance(named, (tuple, list)) or not all(isinstance(name, str) for name in named):
        raise InputError(
            f'assume_symmetric={assume_symmetric!r}: give "all", or the functions\' names'
        )
    return tuple(named)
