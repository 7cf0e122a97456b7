"""One program measured in a process of its own: `python -m benchmarks.child JOB`, JOB as JSON.

It prints one line of JSON and exits; whoever started it reads that, or how it died.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.programs import make
from benchmarks.reference import Size
from mixflow.runtime.bench.processes import die_first, forget_peak, peak_bytes


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Arguments:
        program: a name that `benchmarks.programs` knows.
        size, task: of the reference program.
        dtype: "float32" or "float64".
        runs: timed runs, after one that is not timed; none if it is only to be compiled.
        results: where the result's leaves go, an npz file; None to leave them.
    """

    program: str
    size: Size
    task: str
    dtype: str = "float32"
    runs: int = 0
    results: str | None = None

    def to_json(self) -> str:
        """The command-line argument."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        """Back from the command-line argument."""
        fields: dict[str, Any] = json.loads(text)
        return Job(size=Size(**fields.pop("size")), **fields)


def measure(job: Job) -> dict[str, Any]:
    """Compile the program and, if asked to, run it."""
    jax.config.update("jax_enable_x64", job.dtype == "float64")
    jitted, args = make(job.program, job.size, job.task)
    start = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    figures: dict[str, Any] = {
        "backend": jax.default_backend(),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_s": time.perf_counter() - start,
    }
    return {**figures, **_run(job, compiled, args)} if job.runs else figures


def _run(job: Job, compiled: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    args = jax.block_until_ready(jax.device_put(args))
    first = first_run(lambda: compiled(*args), job.results)
    return {**first, "run_s": median_seconds(lambda: compiled(*args), job.runs)}


def first_run(run: Callable[[], Any], results: str | None) -> dict[str, Any]:
    """By how many bytes the process's resident memory grows at its peak.

    Arguments:
        run: starts one run of the program.
        results: where the result's leaves go, an npz file; None to leave them.
    """
    forget_peak()
    before = peak_bytes()
    result = jax.block_until_ready(run())
    resident = peak_bytes() - before
    if results is not None:
        np.savez(results, *map(np.asarray, jax.tree.leaves(result)))
    return {"resident_bytes": resident}


def median_seconds(run: Callable[[], Any], runs: int) -> float:
    """Seconds of one run, the median of some."""

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    return statistics.median(seconds() for _ in range(runs))


def _main() -> None:
    die_first()
    try:
        print(json.dumps(measure(Job.from_json(sys.argv[1]))))
    except Exception as error:
        traceback.print_exc()
        # The last line on stderr is what the row says; JAX's notes would be in its place.
        sys.exit(f"{type(error).__name__}: {error}".splitlines()[0])


if __name__ == "__main__":
    _main()
