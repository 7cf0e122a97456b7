"""One entry's report: figures before and after, rewrites, declines."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from mixflow.compiler.dialects.remarks import Remark
from mixflow.report.text import render_markdown, render_text
from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.measure import Measurement, Program, concrete, copied, measure
from mixflow.runtime.options import Options
from mixflow.runtime.target import measured_target
from mixflow.runtime.verify import Verified, nudge, verify_results

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
        before, after: figures of plain JAX and of the optimised program.
        checkpointed: figures of plain JAX with a checkpointed step; None without an inner loop.
        plan: the pipeline that the program was given; empty where it was left as it is.
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
    programs: ReportedPrograms

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

    def __str__(self) -> str:
        return render_text(self)


@dataclass(frozen=True)
class ReportedPrograms:
    """The programs behind a report: compiled, as IR text, and the function to export."""

    optimised: CompiledFunction
    before: Program
    after: Program
    ir_before: str
    ir_after: str


def make_report(
    function: CompiledFunction,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    run: bool,
    verify: bool,
    as_written: bool = False,
) -> Report:
    """Compile the entry's meta-gradient three ways, and put the figures side by side.

    Arguments:
        function: the entry.
        args, kwargs: arrays or `jax.ShapeDtypeStruct`; where something is run, shapes are
            filled with small random numbers.
        run: whether to time the programs.
        verify: whether to compare plain and optimised results.
        as_written: measure the function itself, whatever it returns.
    """
    options = function.options
    target, words = (
        (function.fun, "as written")
        if as_written
        else measured_target(function.fun, args, kwargs, options.jit)
    )
    plain = jax.jit(target, **options.jit)
    optimised = CompiledFunction(target, replace(options, verify=False))
    try:
        before = measure(plain, args, kwargs, run=run)
    except ValueError:
        if target is function.fun:
            raise
        # A scalar that reverse mode cannot differentiate (a while loop, say) is no meta-loss.
        return make_report(function, args, kwargs, run=run, verify=verify, as_written=True)
    after = measure(optimised, args, kwargs, run=run)
    outcome = optimised.optimised(*args, **kwargs)
    return Report(
        entry=function.__name__,
        target=words,
        jax=jax.__version__,
        backend=jax.default_backend(),
        before=before.measurement,
        after=after.measurement,
        checkpointed=_checkpointed(target, options, args, kwargs, run=run),
        plan=outcome.passes,
        rewrites=tuple(map(_short, outcome.rewrites)),
        declined=tuple(map(_short, outcome.declines)),
        verified=_verify(plain, optimised, args, kwargs) if verify else None,
        programs=ReportedPrograms(
            optimised, before, after, optimised.ir(*args, before=True, **kwargs), outcome.text
        ),
    )


def _checkpointed(
    target: Any, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any], *, run: bool
) -> Measurement | None:
    """Plain JAX with a checkpointed step, where there is a step."""
    function = CompiledFunction(
        target, replace(options, passes=CHECKPOINTED_STEP, memory_budget=None, verify=False)
    )
    if not function.optimised(*args, **kwargs).rewrites:
        return None
    return measure(function, args, kwargs, run=run).measurement


def _verify(plain: Any, optimised: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Verified:
    args, kwargs = concrete((args, kwargs))

    def run(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own_args, own_kwargs = copied((args, kwargs))  # the program may take them by donation
        return program(*own_args, **own_kwargs)

    result, expected = run(optimised, args, kwargs), run(plain, args, kwargs)
    return verify_results(result, expected, run(plain, nudge(args), nudge(kwargs)))


def _short(remark: Remark) -> Remark:
    """The remark with its files relative to here, where they are below."""
    here = f"{Path.cwd()}{os.sep}"
    text, at = remark.text.replace(here, ""), remark.at.removeprefix(here)
    return Remark(remark.by, remark.kind, text, at)
