"""The largest model and the longest sequence that fit into a memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.files import ROOT
from benchmarks.scale.child import PROGRAMS, Job
from benchmarks.scale.models import LENGTHS, MODELS, TOKENS
from mixflow.runtime.bench.processes import ChildDied, in_process

Figures = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Walk:
    """How sizes are walked.

    Arguments:
        memory: bytes for arguments, results and temporaries.
        device: "cpu", where XLA's account decides, or "gpu", where it has to run as well.
        steps: T, each of them.
    """

    memory: int
    device: Literal["cpu", "gpu"]
    steps: Sequence[int]


def walk(how: Walk, say: Say = lambda _: None) -> Iterator[Figures]:
    """For each T and program: the largest model, the longest sequence, and all that was tried."""
    cases = itertools.product(how.steps, PROGRAMS)
    # On a CPU nothing is run, and compiling takes one core; a GPU is for one at a time.
    at_once = (os.cpu_count() or 1) if how.device == "cpu" else 1
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda case: _row(case[0], case[1], how, say), cases)


def _row(steps: int, program: str, how: Walk, say: Say) -> Figures:
    models, lengths, tokens = MODELS[how.device], LENGTHS[how.device], TOKENS[how.device]
    by_size = [Job(program, one, steps, tokens, how.device) for one in models]
    by_length = [Job(program, models[0], steps, one, how.device) for one in lengths]
    model, sized = largest(by_size, how, say)
    length, long = largest(by_length, how, say)
    return {
        "steps": steps,
        "program": program,
        "largest_model": None if model is None else models[model].parameters,
        "longest_sequence": None if length is None else lengths[length],
        "tried": [*sized, *long],
    }


def largest(jobs: Sequence[Job], how: Walk, say: Say) -> tuple[int | None, list[Figures]]:
    """The place of the last job that fits, found by halving, and what was tried.

    Arguments:
        jobs: the smallest first: what fits is followed by what does not.
    """
    tried: list[Figures] = []
    fits, too_large = -1, len(jobs)
    while too_large - fits > 1:
        place = (fits + too_large) // 2
        tried.append(_tried(jobs[place], how, say))
        if tried[-1]["fits"]:
            fits = place
        else:
            too_large = place
    return (fits if fits >= 0 else None), tried


def _tried(job: Job, how: Walk, say: Say) -> Figures:
    size = f"{job.model.parameters / 1e6:.0f} M parameters, {job.tokens} tokens"
    say(f"{job.steps} steps: {job.program}, {size}")
    found = _needs(job)
    if found["failed"] is None and found["total_bytes"] <= how.memory and job.device != "cpu":
        found = {**found, **_needs(replace(job, run=True))}
    return {
        "parameters": job.model.parameters,
        "tokens": job.tokens,
        **found,
        "fits": found["failed"] is None and _most(found) <= how.memory,
    }


def _needs(job: Job) -> Figures:
    try:
        return {**in_process("benchmarks.scale.child", job.to_json(), ROOT), "failed": None}
    except ChildDied as death:
        return {"total_bytes": None, "peak_bytes": None, "failed": str(death)}


def _most(found: Figures) -> int:
    return max(found["total_bytes"], found["peak_bytes"] or 0)
