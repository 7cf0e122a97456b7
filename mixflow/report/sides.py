"""An entry's meta-gradient by plain JAX and by mixflow, both compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from mixflow.compiler.dialects.remarks import Remark
from mixflow.compiler.pipeline import Optimised
from mixflow.report.places import placed
from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.measure import Program, measure
from mixflow.runtime.target import measured_target


@dataclass(frozen=True)
class Sides:
    """Arguments:
    target: what of the entry was compiled, in words.
    plain: it under `jax.jit`.
    optimised: it under `mixflow.compile`.
    before, after: the two, compiled and measured.
    outcome: the optimised program.
    """

    target: str
    plain: Any
    optimised: CompiledFunction
    before: Program
    after: Program
    outcome: Optimised

    @property
    def rewrites(self) -> tuple[Remark, ...]:
        """What the passes did."""
        return tuple(map(placed, self.outcome.rewrites))

    @property
    def declined(self) -> tuple[Remark, ...]:
        """What they, or the capture, left alone."""
        return tuple(map(placed, self.outcome.declines))


def compile_sides(
    function: CompiledFunction,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    run: bool,
    as_written: bool = False,
) -> Sides:
    """Compile an entry by plain JAX and by mixflow.

    Arguments:
        function: the entry.
        args, kwargs: arrays or `jax.ShapeDtypeStruct`.
        run: whether to time the programs.
        as_written: take the function itself, whatever it returns.
    """
    options = function.options
    target, words = _target(function, args, kwargs, as_written=as_written)
    plain = jax.jit(target, **options.jit)
    optimised = CompiledFunction(target, replace(options, verify=False))
    try:
        before = measure(plain, args, kwargs, run=run, static=options.static)
    except ValueError:
        if target is function.fun:
            raise
        # A scalar that reverse mode cannot differentiate (a while loop, say) is no meta-loss.
        return compile_sides(function, args, kwargs, run=run, as_written=True)
    after = measure(optimised, args, kwargs, run=run, static=options.static)
    outcome = optimised.optimised(*args, **kwargs)
    return Sides(words, plain, optimised, before, after, outcome)


def _target(
    function: CompiledFunction, args: tuple[Any, ...], kwargs: dict[str, Any], *, as_written: bool
) -> tuple[Callable[..., Any], str]:
    if as_written:
        return function.fun, "as written"
    return measured_target(function.fun, args, kwargs, function.options.jit)
