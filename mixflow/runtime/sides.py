"""An entry's meta-gradient by plain JAX and by mixflow, both compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from mixflow.compiler.ir.dialects.remarks import Remark
from mixflow.compiler.ir.places import placed
from mixflow.planner.front import Offer
from mixflow.planner.pipeline import Optimised
from mixflow.runtime.arguments import Arguments
from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.measure import Measurement, Program, concrete, copied, measure
from mixflow.runtime.target import of_target
from mixflow.runtime.verification.noise import MovedRoundings
from mixflow.runtime.verification.results import Verified, verify_results

CHECKPOINTED_STEP = "canonicalize,cse,fuse-value-and-pullback,checkpoint-inner-loop"
"""The baseline beside plain JAX: `jax.checkpoint` around the inner step, nothing else."""


@dataclass(frozen=True)
class Sides:
    """Arguments:
    entry: its name.
    target: what of the entry was compiled, in words.
    args, kwargs: the arguments, or their shapes.
    run: whether programs are timed.
    plain: the target under `jax.jit`.
    optimised: it under `mixflow.compile`.
    before, after: the two, compiled and measured.
    outcome: the optimised program.
    """

    entry: str
    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    run: bool
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

    def traced(self) -> tuple[ClosedJaxpr, ClosedJaxpr]:
        """The two as JAX lowers them."""
        one, other = (
            side.trace(*self.args, **self.kwargs) for side in (self.plain, self.optimised)
        )
        return one.jaxpr, other.jaxpr

    def text_before(self) -> str:
        """The IR that the passes are given."""
        return self.optimised.ir(*self.args, before=True, **self.kwargs)

    def front(self) -> tuple[Offer, ...]:
        """What a memory budget would buy."""
        return self.optimised.front(*self.args, **self.kwargs)

    def checkpointed(self) -> Measurement | None:
        """Plain JAX with a checkpointed step, where there is a step."""
        function = self.optimised.with_options(
            passes=CHECKPOINTED_STEP, memory_budget=None, autotune=False
        )
        if not function.optimised(*self.args, **self.kwargs).rewrites:
            return None
        static = self.optimised.options.static
        found = measure(function, self.args, self.kwargs, run=self.run, static=static)
        return found.measurement

    def verified(self) -> Verified:
        """The comparison of the two's results; shapes are filled with small random numbers.

        Raises:
            VerificationError: they differ by more than roundings do.
        """
        fun, static = self.optimised.fun, self.optimised.options.static
        arguments = Arguments(fun, static)
        call = arguments.mapped(concrete, self.args, self.kwargs)

        def run(program: Any) -> Any:
            own_args, own_kwargs = arguments.mapped(copied, *call)  # it may take them by donation
            return program(*own_args, **own_kwargs)

        moved = MovedRoundings(fun, static)
        return verify_results(run(self.optimised), run(self.plain), partial(moved, *call))


def compile_sides(
    function: CompiledFunction, args: tuple[Any, ...], kwargs: dict[str, Any], *, run: bool
) -> Sides:
    """Compile an entry by plain JAX and by mixflow.

    Arguments:
        function: the entry.
        args, kwargs: arrays or `jax.ShapeDtypeStruct`.
        run: whether to time the programs.
    """
    options = function.options

    def compile_plain(target: Callable[..., Any], words: str) -> tuple[Any, str, Any, Program]:
        plain = jax.jit(target, **options.jit)
        return target, words, plain, measure(plain, args, kwargs, run=run, static=options.static)

    target, words, plain, before = of_target(function.fun, args, kwargs, options.jit, compile_plain)
    optimised = CompiledFunction(target, replace(options, verify=False))
    return Sides(
        entry=function.__name__,
        target=words,
        args=args,
        kwargs=kwargs,
        run=run,
        plain=plain,
        optimised=optimised,
        before=before,
        after=measure(optimised, args, kwargs, run=run, static=options.static),
        outcome=optimised.optimised(*args, **kwargs),
    )
