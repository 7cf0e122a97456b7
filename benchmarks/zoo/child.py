"""One program of an example, in a process of its own: `python -m benchmarks.zoo.child JOB`.

It answers with what it took to compile, then with its first run's figures, then with the seconds
of some runs as often as it is asked.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax

from benchmarks.child import first_run, median_seconds
from benchmarks.zoo.replay import replayed
from benchmarks.zoo.worker import serve
from mixflow.compiler.ir.dialects.remarks import Remark
from mixflow.compiler.ir.places import placed
from mixflow.runtime.entries import load_entries
from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.measure import total_bytes
from mixflow.runtime.sides import CHECKPOINTED_STEP
from mixflow.runtime.target import measured_target

Figures = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Arguments:
        model: the example's file.
        program: "plain", "checkpointed-step", "mixflow" or "replay".
        memory_budget: in bytes, for mixflow.
        constants: of the example's module, to be set before it is used, by name.
        runs: timed runs for each answer.
        results: where the result's leaves go, an npz file; None to leave them.
    """

    model: str
    program: str
    memory_budget: int | None = None
    constants: Mapping[str, int] = field(default_factory=dict[str, int])
    runs: int = 5
    results: str | None = None

    def to_json(self) -> str:
        """The command-line argument."""
        return json.dumps(asdict(self))


def answers(job: Job) -> Iterator[Figures]:
    """Compile the program, run it, and time it."""
    jax.config.update("jax_enable_compilation_cache", False)
    (entry,) = load_entries(job.model)
    entry.fun.__globals__.update(job.constants)
    args = entry.examples or ()
    if job.program == "replay":
        run, figures = replayed(job.model, entry, args)
    else:
        run, figures = _compiled(job, entry, args)
    yield figures
    yield first_run(run, job.results)
    while True:
        yield {"run_s": median_seconds(run, job.runs)}


def _compiled(job: Job, entry: CompiledFunction, args: tuple[Any, ...]) -> tuple[Any, Figures]:
    target, words = measured_target(entry.fun, args, {}, entry.options.jit)
    jitted = _jitted(job, target, entry)
    start = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    figures = {
        "target": words,
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "total_bytes": total_bytes(compiled),
        "compile_s": time.perf_counter() - start,
        **_remarks(jitted, args),
    }
    args = jax.block_until_ready(jax.device_put(args))
    return lambda: compiled(*args), figures


def _jitted(job: Job, target: Any, entry: CompiledFunction) -> Any:
    if job.program == "plain":
        return jax.jit(target, **entry.options.jit)
    passes = {"mixflow": entry.options.passes, "checkpointed-step": CHECKPOINTED_STEP}[job.program]
    options = replace(entry.options, verify=False, passes=passes, memory_budget=job.memory_budget)
    return CompiledFunction(target, options)


def _remarks(jitted: Any, args: tuple[Any, ...]) -> Figures:
    """What was rewritten and what was declined, where there are passes."""
    if not isinstance(jitted, CompiledFunction):
        return {}
    outcome = jitted.optimised(*args)

    def listed(remarks: Iterable[Remark]) -> list[Figures]:
        return [
            {"pass": remark.by, "at": remark.at, "text": remark.text}
            for remark in map(placed, remarks)
        ]

    return {
        "plan": outcome.passes,
        "rewrites": listed(outcome.rewrites),
        "declined": listed(outcome.declines),
    }


if __name__ == "__main__":
    serve(answers(Job(**json.loads(sys.argv[1]))))
