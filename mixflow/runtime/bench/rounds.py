"""Plain JAX and mixflow side by side: in turn, round after round, each in its own process."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from mixflow.errors import InputError
from mixflow.runtime.bench.child import Job, Which
from mixflow.runtime.bench.processes import ChildDied, in_process

NAMES: dict[Which, str] = {"before": "plain JAX", "after": "mixflow"}
FIGURES = ("temp_bytes", "resident_bytes", "run_s", "compile_s")

Progress = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    min: float
    max: float


@dataclass
class Row:
    """A program's figures in each round, or why it has none (any more)."""

    rounds: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    failed: str | None = None

    def spread(self, figure: str) -> Spread | None:
        """A figure's median, least and most over the rounds; None without rounds."""
        found = [figures[figure] for figures in self.rounds]
        if not found:
            return None
        median = statistics.median(found)
        whole = isinstance(found[0], int)
        return Spread(round(median) if whole else median, min(found), max(found))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        spreads = {figure: self.spread(figure) for figure in FIGURES}
        found = {name: None if one is None else asdict(one) for name, one in spreads.items()}
        return {**found, "failed": self.failed, "rounds": self.rounds}


@dataclass(frozen=True)
class Entry:
    """An entry of a model file.

    Arguments:
        model: MODEL.py or MODEL.py:NAME.
        position: which entry of these.
        name: its function's name.
        jax, backend: JAX's version, and the platform that it is measured on.
    """

    model: str
    position: int
    name: str
    jax: str
    backend: str


@dataclass(frozen=True)
class How:
    """How often programs are measured, and for which budget.

    Arguments:
        rounds: how often each program is measured, each time in a fresh process.
        runs: timed runs in each process.
        memory_budget: in bytes, in place of the entries' own.
    """

    rounds: int = 3
    runs: int = 3
    memory_budget: int | None = None


@dataclass(frozen=True)
class Bench:
    """What was measured of an entry."""

    entry: Entry
    how: How
    rows: dict[Which, Row]

    @property
    def target(self) -> str | None:
        """What of the entry was measured, in words; None where nothing was."""
        rounds = [figures for row in self.rows.values() for figures in row.rounds]
        return rounds[0]["target"] if rounds else None

    def ratio(self, figure: str) -> float | None:
        """Plain JAX's figure divided by mixflow's: the median of the rounds' ratios."""
        pairs = zip(self.rows["before"].rounds, self.rows["after"].rounds, strict=False)
        ratios = [a[figure] / b[figure] for a, b in pairs if b[figure]]
        return statistics.median(ratios) if ratios else None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `docs/bench.md` lists the fields."""
        return {
            "entry": self.entry.name,
            "target": self.target,
            "jax": self.entry.jax,
            "backend": self.entry.backend,
            **asdict(self.how),
            **{which: row.to_dict() for which, row in self.rows.items()},
            "ratios": {figure: self.ratio(figure) for figure in FIGURES},
        }


def find_entries(model: str) -> list[Entry]:
    """The entries of a model file, which is loaded in another process.

    Raises:
        InputError: no such file or entry, or it does not load.
    """
    try:
        found = _ask(Job(model, "list"))
    except ChildDied as death:
        raise InputError(str(death)) from None
    names: list[str] = found["entries"]
    return [
        Entry(model, position, name, found["jax"], found["backend"])
        for position, name in enumerate(names)
    ]


def bench_entry(entry: Entry, how: How, progress: Progress) -> Bench:
    """Measure an entry's meta-gradient by plain JAX and by mixflow.

    A program whose process dies is not tried again; its row says why.

    Arguments:
        entry: what `find_entries` found.
        how: how often, and for which budget.
        progress: shows what is being measured.
    """
    rows: dict[Which, Row] = {which: Row() for which in NAMES}
    bench = Bench(entry, how, rows)
    for turn, which in product(range(how.rounds), NAMES):
        if rows[which].failed is not None:
            continue
        with progress(f"{entry.name}: {NAMES[which]}, round {turn + 1} of {how.rounds}"):
            try:
                rows[which].rounds.append(_ask(_job(bench, which)))
            except ChildDied as death:
                rows[which].failed = str(death)
    return bench


def profile_entry(bench: Bench, progress: Progress) -> dict[str, Any]:
    """What is alive at the peak of an entry's programs, for JSON.

    Arguments:
        bench: the entry's figures.
        progress: shows what is being compiled.
    """
    programs: dict[str, Any] = {}
    for which, name in NAMES.items():
        with progress(f"{bench.entry.name}: {name}, memory at the peak"):
            try:
                programs[which] = _ask(_job(bench, which, "peak"))
            except ChildDied as death:
                programs[which] = {"failed": str(death)}
    head = {"entry": bench.entry.name, "jax": bench.entry.jax, "backend": bench.entry.backend}
    return {**head, **programs}


def _job(bench: Bench, which: Which, task: Any = "run") -> Job:
    return Job(
        bench.entry.model,
        task,
        bench.entry.position,
        which,
        as_written=bench.target == "as written",  # plain JAX is first, and both are to be the same
        memory_budget=bench.how.memory_budget,
        runs=bench.how.runs,
    )


def _ask(job: Job) -> dict[str, Any]:
    return in_process("mixflow.runtime.bench.child", job.to_json())
