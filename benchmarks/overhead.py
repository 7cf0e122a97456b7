"""What mixflow adds before a program runs, in CPU seconds beside plain JAX's own.

Each program is prepared by plain JAX and by mixflow, each in a process of its own, so that every
cache is empty. What comes before XLA is tracing and lowering, for mixflow with its capture, passes,
planning and emission.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax

import mixflow
from benchmarks.estimates import examples
from benchmarks.unrolled import (
    Program,
    adam_steps,
    nested_jits,
    unrolled_layers,
    unrolled_steps,
    unrolled_tasks,
)

Row = dict[str, Any]

EXAMPLES = Path(__file__).parent.parent / "examples"

GROWING: dict[str, Callable[[int], Program]] = {
    "unrolled steps": unrolled_steps,
    "Adam steps": adam_steps,
    "layers": unrolled_layers,
    "tasks": unrolled_tasks,
    "nested jits": nested_jits,
}
"""Programs of any size: "100 unrolled steps"."""

HOW = {"plain": jax.jit, "mixflow": mixflow.compile}


def names() -> tuple[str, ...]:
    """The programs that are prepared: the reference program, the examples, those that grow."""
    growing = ("100 unrolled steps", "300 unrolled steps", "200 nested jits")
    return ("reference", *sorted(path.stem for path in EXAMPLES.glob("*.py")), *growing)


def program(name: str) -> Program:
    """A meta-gradient, and its arguments."""
    count, _, kind = name.partition(" ")
    if kind in GROWING:
        return GROWING[kind](int(count))
    if name == "reference":
        return unrolled_layers(12)
    (subject,) = examples(EXAMPLES, f"{name}.py")
    return subject.gradient, subject.args


def prepare(name: str, how: str) -> Row:
    """CPU seconds before XLA and with it, the most memory that the process had, and XLA's own.

    Arguments:
        name: one of `names()`, or a size and one of `GROWING`.
        how: one of `HOW`.
    """
    gradient, args = program(name)
    jax.clear_caches()  # to find the examples' meta-losses, their types were traced
    start = time.process_time()
    lowered = HOW[how](gradient).lower(*args)
    before_xla = time.process_time() - start
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    return {
        "before_xla_s": before_xla,
        "whole_s": time.process_time() - start,
        "resident_bytes": resident,
        "temp_bytes": memory.temp_size_in_bytes,
    }


def overhead(chosen: Sequence[str]) -> Iterator[Row]:
    """For each program what plain JAX and mixflow take, and the ratios."""
    for name in chosen:
        plain, ours = (_alone(name, how) for how in HOW)
        ratios = {figure: ours[figure] / plain[figure] for figure in plain}
        yield {"program": name, "plain": plain, "mixflow": ours, "ratios": ratios}


def _alone(name: str, how: str) -> Row:
    """In a process that has prepared nothing yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(prepare, name, how).result()
