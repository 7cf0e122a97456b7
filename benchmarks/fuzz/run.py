"""Programs one after the other: judged, counted, and where one fails, shrunk."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from benchmarks.fuzz.generate import generate
from benchmarks.fuzz.judge import PlainFails, Reference, Run, Verdict, judge, run_compiled
from benchmarks.fuzz.plans import draw_plan
from benchmarks.fuzz.program import X64, Program
from benchmarks.fuzz.shrink import shrink
from benchmarks.fuzz.stepped import run_stepped

FORGET_EVERY = 100
"""After so many programs JAX forgets what it compiled: it would take gigabytes."""


PLANNED_EVERY = 8
"""The planner is asked for one program in so many: it takes as long as all the rest."""

COMPILED_EVERY = 32
"""XLA compiles one program in so many as a whole: it takes ten times as long as the rest."""


def drawn_plans(seed: int) -> Sequence[str | None]:
    """A plan drawn at random, and the planner's choice for some programs."""
    planned = [None] if seed % PLANNED_EVERY == 0 else []
    return [draw_plan(seed), *planned]


@dataclass(frozen=True)
class Judged:
    """Arguments:
    program: the program.
    verdicts: one for each plan; none where plain JAX fails.
    skipped: why plain JAX's result is no reference.
    """

    program: Program
    verdicts: tuple[Verdict, ...]
    skipped: str = ""

    @property
    def fault(self) -> Verdict | None:
        """The first fault of mixflow."""
        return next((verdict for verdict in self.verdicts if verdict.is_fault), None)

    @property
    def rewritten(self) -> bool:
        """Whether the forced plan gave some gradient another rule than JAX's."""
        return any(verdict.rewritten for verdict in self.verdicts if verdict.passes)


def judged(seed: int, run: Run = run_compiled) -> Judged:
    """The program of a number, judged under some plans."""
    program = generate(seed)
    try:
        reference = Reference(program.source, run)
    except PlainFails as reason:
        return Judged(program, (), str(reason))
    return Judged(program, tuple(judge(reference, plan) for plan in drawn_plans(seed)))


def shrunk(one: Judged, seconds: float, run: Run = run_compiled) -> str:
    """The shortest program found, within a time, that has the same fault as one that has one."""
    fault, end = one.fault, time.monotonic() + seconds
    assert fault is not None
    seen: set[str] = set()

    def fails(source: str) -> bool:
        if time.monotonic() > end or source in seen or X64 not in source:
            return False
        seen.add(source)
        try:
            return fault.is_like(judge(Reference(source, run), fault.passes))
        except PlainFails:
            return False

    return shrink(one.program.source, fails)


def run_of(seed: int) -> Run:
    """How a program is run: seldom by XLA as a whole, which takes longer."""
    return run_compiled if seed % COMPILED_EVERY == 0 else run_stepped


def programs(first: int, seconds: float) -> Iterator[Judged]:
    """One program after the other, until the time is over."""
    end, seed = time.monotonic() + seconds, first
    while time.monotonic() < end:
        yield judged(seed, run_of(seed))
        seed += 1
        if (seed - first) % FORGET_EVERY == 0:
            jax.clear_caches()


@dataclass
class Tally:
    """What became of many programs."""

    programs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    declines: Counter[str] = field(default_factory=Counter)
    linear: int = 0
    linear_rewritten: int = 0
    linear_left: Counter[str] = field(default_factory=Counter)
    rewritten: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)

    def add(self, one: Judged) -> None:
        """Count one program."""
        self.programs += 1
        if not one.verdicts:
            self.skipped[kind_of(one.skipped)] += 1
            return
        self.verdicts.update(verdict.kind for verdict in one.verdicts)
        self.rewritten += one.rewritten
        self.linear += one.program.linear
        self.linear_rewritten += one.program.linear and one.rewritten
        for verdict in one.verdicts:
            if verdict.passes:
                declines = {kind_of(reason) for reason in verdict.declines}
                self.declines.update(declines)
                self.linear_left.update(
                    declines if one.program.linear and not one.rewritten else ()
                )

    def summary(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "programs": self.programs,
            "skipped": dict(self.skipped.most_common()),
            "verdicts": dict(self.verdicts),
            "rewritten by a forced plan": self.rewritten,
            "with provably linear rules": self.linear,
            "of those rewritten": self.linear_rewritten,
            "why the others are not": dict(self.linear_left.most_common()),
            "declines of forced plans": dict(self.declines.most_common()),
            "faults": self.faults,
        }


def kind_of(reason: str) -> str:
    """A reason without names, places and numbers."""
    text = reason.split(";", maxsplit=1)[0]
    text = re.sub(r"\S+ \(<random program>:\d+\): ", "", text)
    text = re.sub(r"\([^()]*:\d+\)", "", text)
    return re.sub(r"'[^']*'|\d+", "…", text).strip()
