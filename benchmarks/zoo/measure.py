"""Programs of an example side by side: compiled one by one, then run in turn."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare import relative_error
from benchmarks.zoo.child import Job
from benchmarks.zoo.worker import Worker
from mixflow.runtime.bench.processes import ChildDied

Figures = dict[str, Any]
Say = Callable[[str], None]

HALVED = "mixflow, in half of its memory"
"""mixflow with a budget of half of what it needs without one."""

MATCHED = "mixflow, in the checkpointed step's memory"
"""mixflow with a budget of what plain JAX with a checkpointed step needs."""

ZOO = ("plain", "checkpointed-step", "mixflow", MATCHED, HALVED)
"""The programs of each example."""

_BUDGETS = {MATCHED: ("checkpointed-step", 1), HALVED: ("mixflow", 2)}
"""Whose bytes a program's budget is, and by what they are divided."""


@dataclass(frozen=True)
class How:
    """How an example's programs are compared.

    Arguments:
        programs: their names.
        rounds: how often each is run, in turn with the others.
        runs: timed runs in each round, of which the median counts.
        constants: of the example's module, by name.
    """

    programs: Sequence[str] = ZOO
    rounds: int = 5
    runs: int = 5
    constants: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass
class Run:
    """One program on its way: its process, what is known of it, and why it died, if it did."""

    worker: Worker | None = None
    figures: Figures = field(default_factory=dict[str, Any])
    times: list[float] = field(default_factory=list[float])
    failed: str | None = None

    def ask(self) -> Figures:
        """The process's next answer; nothing where it died."""
        if self.worker is None or self.failed is not None:
            return {}
        try:
            return self.worker.ask()
        except ChildDied as death:
            self.failed = str(death)
            return {}


def measure(model: Path, how: How, say: Say = lambda _: None) -> dict[str, Figures]:
    """Each program's figures, by name. A program whose process dies has `failed`, the reason.

    - temp_bytes, total_bytes: XLA's temporaries, and with arguments and results.
    - resident_bytes: by how much the process's resident memory grew in the first run.
    - run_s: seconds of one meta-gradient: the median over the rounds.
    - compile_s: seconds to trace, lower and compile.
    - relative_error: of value and gradient against plain JAX's: the largest ‖a-b‖∞ / ‖b‖∞ over
      leaves.
    - plan, rewrites, declined: of programs that went through the passes.

    Arguments:
        model: the example's file, with one entry.
        how: which programs, and how often.
        say: is told what is being measured.
    """
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name in how.programs:
            say(f"{model.stem}: compiling {name}")
            runs[name] = _started(model, name, how, runs, Path(folder), stack)
        for run in runs.values():
            run.figures.update(run.ask())
        for turn in range(how.rounds):
            say(f"{model.stem}: round {turn + 1} of {how.rounds}")
            for run in runs.values():
                run.times += run.ask().values()
        errors = _errors(Path(folder), runs)
    return {name: _row(run, errors.get(name)) for name, run in runs.items()}


def _started(
    model: Path, name: str, how: How, runs: dict[str, Run], folder: Path, stack: ExitStack
) -> Run:
    """A program's process, which has compiled it."""
    budget = None
    if name in _BUDGETS:
        whose, parts = _BUDGETS[name]
        if runs[whose].failed is not None:
            return Run(failed=runs[whose].failed)
        budget = runs[whose].figures["total_bytes"] // parts
    job = Job(
        model=str(model.resolve()),
        program="mixflow" if name in _BUDGETS else name,
        memory_budget=budget,
        constants=how.constants,
        runs=how.runs,
        results=str(_results(folder, name)),
    )
    run = Run(stack.enter_context(Worker("benchmarks.zoo.child", job.to_json())))
    run.figures = {"memory_budget": budget}
    run.figures.update(run.ask())
    return run


def _results(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"


def _errors(folder: Path, runs: dict[str, Run]) -> dict[str, float]:
    plain = _results(folder, "plain")
    if not plain.exists():
        return {}
    found = {name: _results(folder, name) for name in runs if name != "plain"}
    return {name: relative_error(path, plain) for name, path in found.items() if path.exists()}


def _row(run: Run, error: float | None) -> Figures:
    run_s = statistics.median(run.times) if run.times else None
    return {
        **run.figures,
        "run_s": run_s,
        "times": run.times,
        "relative_error": error,
        "failed": run.failed,
    }
