"""`python -m benchmarks fuzz`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable

import click
import jax

from benchmarks.fuzz.program import standalone
from benchmarks.fuzz.run import Judged, Tally, judged, programs, run_of, shrunk
from benchmarks.machine import versions

FAST_COMPILER = {
    "0.10": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
}
"""By JAX's version, what lets XLA take a third of the time; the arithmetic is the same."""


@click.command("fuzz")
@click.option("--seconds", type=float, default=600.0, help="When to stop.")
@click.option("--seed", type=int, default=0, help="The first program's number.")
@click.option("--program", type=int, help="Judge this program alone, and print it.")
@click.option("--shrink-seconds", type=float, default=300.0, help="For each program that fails.")
def fuzz_command(seconds: float, seed: int, program: int | None, shrink_seconds: float) -> None:
    """Random second-order programs, judged against plain JAX; exit code 1 if one is wrong.

    Each program has a number, which is printed: --seed goes on from there. A program that fails is
    shrunk to a short one that fails alike and runs alone. Each is run under a plan drawn at random,
    and one in eight under the planner's as well; one operation at a time, and one in 32 by XLA as a
    whole.
    """
    fast = FAST_COMPILER.get(jax.__version__[:4], "--xla_backend_optimization_level=0")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {fast}"
    tally = Tally()
    for one in _wanted(seconds, seed, program):
        click.echo(_line(one), err=True)
        tally.add(one)
        if one.fault:
            source = shrunk(one, shrink_seconds, run_of(one.program.seed))
            click.echo(standalone(source, one.fault.passes), err=True)
            tally.faults.append({"program": one.program.seed, **vars(one.fault), "short": source})
    click.echo(json.dumps({"versions": versions(), **tally.summary()}, indent=2))
    sys.exit(bool(tally.faults))


def _wanted(seconds: float, seed: int, program: int | None) -> Iterable[Judged]:
    if program is None:
        yield from programs(seed, seconds)
        return
    one = judged(program, run_of(program))
    passes = next((verdict.passes for verdict in one.verdicts if verdict.passes), None)
    click.echo(standalone(one.program.source, passes), err=True)
    yield one


def _line(one: Judged) -> str:
    if not one.verdicts:
        return f"program {one.program.seed}: plain JAX is no reference: {one.skipped}"
    words = [
        f"{'planned' if verdict.passes is None else 'forced'} {verdict.kind} {verdict.why}".strip()
        for verdict in one.verdicts
    ]
    return f"program {one.program.seed}: {', '.join(words)}"
