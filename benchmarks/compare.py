"""Programs measured side by side: each in its own process, in turn, round after round."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import Job
from benchmarks.files import ROOT
from benchmarks.programs import UNIT
from benchmarks.reference import Size
from mixflow.runtime.bench.processes import ChildDied, in_process

Figures = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """How programs are compared.

    Arguments:
        programs: their names; `benchmarks.programs` knows them.
        task: of the reference program.
        dtype: "float32" or "float64".
        rounds: how often each program is measured, each time in a fresh process.
        runs: timed runs in each process; none to compile only.
    """

    programs: tuple[str, ...]
    task: str = "data_weighting"
    dtype: str = "float32"
    rounds: int = 3
    runs: int = 2


def compare(size: Size, how: Comparison, say: Callable[[str], None] = lambda _: None) -> list[Row]:
    """One row for each program. A program whose process dies has a row that says how.

    Figures in a row are medians over the rounds:

    - temp_bytes: `temp_size_in_bytes` of XLA's memory analysis.
    - resident_bytes: by how much the process's resident memory grew, at its peak, in the first
      run: temporaries, results and what XLA's libraries take.
    - run_s: seconds of one meta-gradient, the median of the process's runs after the first.
    - compile_s: seconds to trace, lower and compile.
    - gradient_steps: the cost in plain gradient steps. In each round the program's run_s is
      divided by T times the run_s of one plain `jax.grad` of the loss at θ_0, jitted by itself, in
      a process of its own in the same round. At least (3T + 1)/T without recomputation: T steps
      forward cost one gradient each, their Hessian-vector products two, the outer gradient one.
    - relative_error: of value and gradient against `compared_with`: the largest ‖a-b‖∞ / ‖b‖∞ over
      leaves.

    Arguments:
        size: of the reference program.
        how: what is run, and how often.
        say: is told what is being measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        samples, failed = _measure(size, how, Path(folder), say)
        errors = _errors(Path(folder), how.programs)
    unit = samples.get(UNIT, [])
    return [
        {
            "program": name,
            "task": how.task,
            "size": asdict(size),
            **_medians(samples[name], unit, size.steps),
            **errors.get(name, {"relative_error": None, "compared_with": None}),
            "failed": failed.get(name),
            "rounds": samples[name],
        }
        for name in how.programs
    ]


def _measure(
    size: Size, how: Comparison, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, list[Figures]], dict[str, str]]:
    """Each program's figures in each round, and why those that died did; they are not retried."""
    names = [UNIT, *how.programs] if how.runs else [*how.programs]
    samples: dict[str, list[Figures]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    where = f"{how.task}, {size.steps} steps, {size.layers} layers, {size.tokens} tokens"
    for turn, name in product(range(how.rounds), names):
        if name in failed:
            continue
        say(f"{where}: {name}, round {turn + 1} of {how.rounds}")
        results = str(_results(folder, name)) if how.runs and not turn else None
        try:
            job = Job(name, size, how.task, how.dtype, how.runs, results)
            samples[name].append(_in_process(job))
        except ChildDied as death:
            failed[name] = str(death)
    return samples, failed


def _in_process(job: Job) -> Figures:
    return in_process("benchmarks.child", job.to_json(), ROOT)


def _medians(samples: list[Figures], unit: list[Figures], steps: int) -> Figures:
    def median(name: str) -> float | None:
        return _median(figures[name] for figures in samples if name in figures)

    pairs = zip(samples, unit, strict=False)
    return {
        **{name: _whole(median(name)) for name in ("temp_bytes", "resident_bytes")},
        **{name: median(name) for name in ("run_s", "compile_s")},
        "gradient_steps": _median(a["run_s"] / (steps * b["run_s"]) for a, b in pairs),
    }


def _median(numbers: Iterable[float]) -> float | None:
    numbers = list(numbers)
    return statistics.median(numbers) if numbers else None


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)


def _results(folder: Path, program: str) -> Path:
    return folder / f"{program}.npz"


def _errors(folder: Path, programs: tuple[str, ...]) -> dict[str, Figures]:
    """Each program's error against plain JAX, or where that gave nothing, the first that did."""
    found = [name for name in programs if _results(folder, name).exists()]
    if not found:
        return {}
    against = "plain" if "plain" in found else found[0]
    return {
        name: {
            "relative_error": relative_error(_results(folder, name), _results(folder, against)),
            "compared_with": against,
        }
        for name in found
        if name != against
    }


def relative_error(results: Path, expected: Path) -> float:
    """The largest ‖a-b‖∞ / ‖b‖∞ over the leaves that two npz files hold."""

    def error(a: Any, b: Any) -> float:
        return float(abs(a - b).max() / (abs(b).max() or 1.0))

    return max(map(error, _leaves(results), _leaves(expected)))


def _leaves(path: Path) -> list[Any]:
    with np.load(path) as leaves:
        return [leaves[name].astype(np.float64) for name in leaves.files]
