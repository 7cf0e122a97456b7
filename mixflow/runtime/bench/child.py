"""One program of a model measured: `python -m mixflow.runtime.bench.child JOB`, JOB as JSON.

It prints one line of JSON and exits; whoever started it reads that, or how it died.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import jax

from mixflow.runtime.arguments import Arguments
from mixflow.runtime.bench.processes import forget_peak, peak_bytes, print_answer
from mixflow.runtime.bench.profile import peak_of
from mixflow.runtime.entries import load_entries
from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.measure import concrete, copied
from mixflow.runtime.target import AS_WRITTEN, of_target

Which = Literal["before", "after"]


@dataclass(frozen=True)
class Job:
    """What one process does.

    Arguments:
        model: MODEL.py or MODEL.py:NAME.
        task: "list" the entries' names, "run" a program, or say what is alive at its "peak".
        place: which of the entries.
        program: "before" for plain JAX, "after" for mixflow.
        as_written: measure the function itself, whatever it returns.
        memory_budget: in bytes, in place of the entry's own.
        runs: timed runs, after one that is not timed.
    """

    model: str
    task: Literal["list", "run", "peak"] = "run"
    place: int = 0
    program: Which = "before"
    as_written: bool = False
    memory_budget: int | None = None
    runs: int = 3

    def to_json(self) -> str:
        """The command-line argument."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class _Lowered:
    """A program on its way to XLA: what it is in words, and what it took so far."""

    words: str
    lowered: Any
    seconds: float
    args: tuple[Any, ...]


def answer(job: Job) -> dict[str, Any]:
    """Do what the job says."""
    # What was compiled yesterday would take no time, and leave no dump.
    jax.config.update("jax_enable_compilation_cache", False)
    entries = load_entries(job.model)
    if job.task == "list":
        names = [entry.__name__ for entry in entries]
        return {"entries": names, "jax": jax.__version__, "backend": jax.default_backend()}
    program = _lowered(job, entries[job.place])
    if job.task == "peak":
        return {"target": program.words, **peak_of(program.lowered)}
    start = time.perf_counter()
    compiled = program.lowered.compile()
    compile_s = program.seconds + time.perf_counter() - start
    return {
        "target": program.words,
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_s": compile_s,
        **_run(compiled, program.args, job.runs),
    }


def _lowered(job: Job, entry: CompiledFunction) -> _Lowered:
    if job.memory_budget is not None:
        entry = entry.with_options(memory_budget=job.memory_budget)
    args, options = entry.examples or (), entry.options

    def lower(target: Callable[..., Any], words: str) -> _Lowered:
        jitted: Any = (
            jax.jit(target, **options.jit)
            if job.program == "before"
            else CompiledFunction(target, replace(options, verify=False))
        )
        start = time.perf_counter()
        lowered = jitted.trace(*args).lower()
        seconds = time.perf_counter() - start
        traced, _ = Arguments(target, options.static).traced(args, {})
        return _Lowered(words, lowered, seconds, traced)

    if job.as_written:
        return lower(entry.fun, AS_WRITTEN)
    return of_target(entry.fun, args, {}, options.jit, lower)


def _run(compiled: Any, args: tuple[Any, ...], runs: int) -> dict[str, Any]:
    args = jax.block_until_ready(concrete(args))
    own = jax.block_until_ready(copied(args))  # the program may take them by donation
    forget_peak()
    before = peak_bytes()
    jax.block_until_ready(compiled(*own))
    resident = peak_bytes() - before
    times = [_seconds(compiled, args) for _ in range(runs)]
    return {"resident_bytes": resident, "run_s": statistics.median(times)}


def _seconds(compiled: Any, args: tuple[Any, ...]) -> float:
    own = jax.block_until_ready(copied(args))
    start = time.perf_counter()
    jax.block_until_ready(compiled(*own))
    return time.perf_counter() - start


if __name__ == "__main__":
    print_answer(lambda: answer(Job(**json.loads(sys.argv[1]))))
