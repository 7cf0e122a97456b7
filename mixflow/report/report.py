"""One entry's report: figures before and after, rewrites, declines."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr
from xdsl.dialects.builtin import ModuleOp

from mixflow.compiler.dialects.remarks import Remark
from mixflow.report.sides import compile_sides
from mixflow.report.text import render_markdown, render_text
from mixflow.runtime.arguments import Arguments
from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.measure import Measurement, Program, concrete, copied, measure
from mixflow.runtime.noise import MovedRoundings
from mixflow.runtime.verify import Verified, verify_results

CHECKPOINTED_STEP = "canonicalize,cse,fuse-value-and-pullback,checkpoint-inner-loop"
"""The baseline beside plain JAX: `jax.checkpoint` around the inner step, nothing else."""


@dataclass(frozen=True)
class Report:
    """What mixflow did to a program.

    Arguments:
        entry: the function's name.
        target: what of it was measured, in words.
        jax: JAX's version.
        backend: the platform that the figures are for.
        before: figures of plain JAX.
        after: figures of the optimised program.
        checkpointed: figures of plain JAX with a checkpointed step; None without an inner loop.
        plan: the pipeline that the program was given; `fuse-value-and-pullback` or empty where it
            was left as it is.
        rewrites: what passes did.
        declined: what was left alone, and why.
        verified: the comparison of results; None where none was made.
        programs: the compiled programs, for whoever writes them to files.
    """

    entry: str
    target: str
    jax: str
    backend: str
    before: Measurement
    after: Measurement
    checkpointed: Measurement | None
    plan: str
    rewrites: tuple[Remark, ...]
    declined: tuple[Remark, ...]
    verified: Verified | None
    programs: ReportedPrograms = field(repr=False)

    @property
    def rows(self) -> list[tuple[str, Measurement]]:
        """The measured programs, by name."""
        middle = [("plain JAX, checkpointed step", self.checkpointed)] if self.checkpointed else []
        return [("plain JAX", self.before), *middle, ("mixflow", self.after)]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `docs/command-line.md` lists the fields."""
        checkpointed = None if self.checkpointed is None else self.checkpointed.to_dict()
        verified = None if self.verified is None else vars(self.verified)
        return {
            "entry": self.entry,
            "target": self.target,
            "jax": self.jax,
            "backend": self.backend,
            "before": self.before.to_dict(),
            "checkpointed_step": checkpointed,
            "after": self.after.to_dict(),
            "plan": self.plan,
            "rewrites": [{"pass": r.by, "at": r.at, "what": r.text} for r in self.rewrites],
            "declined": [{"pass": r.by, "at": r.at, "why": r.text} for r in self.declined],
            "verified": verified,
        }

    def to_markdown(self) -> str:
        """For a pull request or a wiki."""
        return render_markdown(self)

    def to_html(self) -> str:
        """One self-contained page, with charts; `docs/reports.md` says how to read it."""
        # What draws the page is needed for pages alone.
        from mixflow.report.html_report import render_html  # noqa: PLC0415

        return render_html(self)

    def __str__(self) -> str:
        return render_text(self)


@dataclass(frozen=True)
class ReportedPrograms:
    """The programs behind a report: compiled, as JAX lowers them, and the function to export.

    Arguments:
        optimised: the function to export.
        before, after: compiled.
        closed_before, closed_after: as JAX lowers them.
        ir_before, ir_after: the IR's text.
        module: the IR after the passes; None where it could not hold the program.
    """

    optimised: CompiledFunction
    before: Program
    after: Program
    closed_before: ClosedJaxpr
    closed_after: ClosedJaxpr
    ir_before: str
    ir_after: str
    module: ModuleOp | None


def make_report(
    function: CompiledFunction,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    run: bool,
    verify: bool,
) -> Report:
    """Compile the entry's meta-gradient three ways, and put the figures side by side.

    Arguments:
        function: the entry.
        args, kwargs: arrays or `jax.ShapeDtypeStruct`; where something is run, shapes are
            filled with small random numbers.
        run: whether to time the programs.
        verify: whether to compare plain and optimised results.
    """
    sides = compile_sides(function, args, kwargs, run=run)
    optimised, outcome = sides.optimised, sides.outcome
    return Report(
        entry=function.__name__,
        target=sides.target,
        jax=jax.__version__,
        backend=jax.default_backend(),
        before=sides.before.measurement,
        after=sides.after.measurement,
        checkpointed=_checkpointed(optimised, args, kwargs, run=run),
        plan=outcome.passes,
        rewrites=sides.rewrites,
        declined=sides.declined,
        verified=_verify(sides.plain, optimised, args, kwargs) if verify else None,
        programs=ReportedPrograms(
            optimised,
            sides.before,
            sides.after,
            sides.plain.trace(*args, **kwargs).jaxpr,
            optimised.trace(*args, **kwargs).jaxpr,
            optimised.ir(*args, before=True, **kwargs),
            outcome.text,
            outcome.module,
        ),
    )


def _checkpointed(
    optimised: CompiledFunction, args: tuple[Any, ...], kwargs: dict[str, Any], *, run: bool
) -> Measurement | None:
    """Plain JAX with a checkpointed step, where there is a step."""
    function = optimised.with_options(passes=CHECKPOINTED_STEP, memory_budget=None, autotune=False)
    if not function.optimised(*args, **kwargs).rewrites:
        return None
    static = optimised.options.static
    return measure(function, args, kwargs, run=run, static=static).measurement


def _verify(
    plain: Any, optimised: CompiledFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Verified:
    arguments = Arguments(optimised.fun, optimised.options.static)
    call = arguments.mapped(concrete, args, kwargs)

    def run(program: Any) -> Any:
        own_args, own_kwargs = arguments.mapped(copied, *call)  # it may take them by donation
        return program(*own_args, **own_kwargs)

    moved = MovedRoundings(optimised.fun, optimised.options.static)
    return verify_results(run(optimised), run(plain), partial(moved, *call))
