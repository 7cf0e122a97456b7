"""The planner's estimate of the peak of temporaries beside XLA's figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import jax

import mixflow
from benchmarks.reference import Size, arguments, meta_loss
from mixflow.compiler.memory.liveness import peak_memory
from mixflow.runtime.entries import load_entries
from mixflow.runtime.measure import measure
from mixflow.runtime.sides import CHECKPOINTED_STEP
from mixflow.runtime.target import measured_target

Row = dict[str, Any]

_BEFORE = "canonicalize,cse,fuse-value-and-pullback,canonicalize"
_AFTER = "forward-over-reverse,checkpoint-inner-loop,save-inner-gradients"
PLANS = {
    "plain JAX": "",
    "plain JAX, checkpointed step": CHECKPOINTED_STEP,
    "forward over reverse": f"{_BEFORE},forward-over-reverse",
    "and a checkpointed step": f"{_BEFORE},forward-over-reverse,checkpoint-inner-loop",
    "and saved gradients": f"{_BEFORE},{_AFTER}",
    "and segments": f"{_BEFORE},{_AFTER},segment-loss",
    "and the first step peeled": f"{_BEFORE},peel-inactive-step,{_AFTER},segment-loss",
}

FARTHEST = 0.25
"""An estimate is to be within this share of XLA's figure."""
APART = 1.1
"""Plans whose figures by XLA are this far from each other are to be ranked alike."""


@dataclass(frozen=True)
class Subject:
    """A meta-gradient to estimate, and its arguments."""

    name: str
    gradient: Callable[..., Any]
    args: tuple[Any, ...]


def reference_programs(sizes: list[Size], task: str) -> Iterator[Subject]:
    """The reference program at some sizes."""
    for size in sizes:
        words = f"{size.steps} steps, {size.layers} layers, {size.tokens} tokens"
        name = f"reference, {task.replace('_', ' ')}, {words}"
        yield Subject(name, jax.value_and_grad(meta_loss(size, task)), arguments(size, task))


def examples(folder: Path, pattern: str = "*.py") -> Iterator[Subject]:
    """The entries of the models in a folder, by name."""
    for path in sorted(folder.glob(pattern)):
        for entry in load_entries(str(path)):
            args = entry.examples or ()
            gradient, _ = measured_target(entry.fun, args, {}, entry.options.jit)
            yield Subject(f"{path.stem}.{entry.__name__}", gradient, args)


def estimates(subjects: Iterator[Subject]) -> Iterator[Row]:
    """For each program and each of `PLANS`: estimate and truth in bytes, and their ratio."""
    for subject in subjects:
        for name, passes in PLANS.items():
            jax.clear_caches()
            compiled = mixflow.compile(subject.gradient, passes=passes)
            estimate = peak_memory(compiled.optimised(*subject.args).jaxpr).bytes
            truth = measure(compiled, subject.args, {}, run=False).measurement.temp_bytes
            yield {
                "program": subject.name,
                "plan": name,
                "estimated_bytes": estimate,
                "temp_bytes": truth,
                "ratio": estimate / truth,
            }


def complaints(rows: list[Row]) -> list[str]:
    """Estimates that are too far off, and pairs of a program's plans that they rank wrongly."""
    far = [
        f"{row['program']}: {row['plan']}: {row['ratio']:.2f} of XLA's figure"
        for row in rows
        if abs(row["ratio"] - 1) > FARTHEST
    ]
    return far + [
        f"{name}: {one['plan']} / {other['plan']} are ranked the wrong way round"
        for name, group in groupby(rows, lambda row: row["program"])
        for one, other in combinations(group, 2)
        if _is_misranked(one, other)
    ]


def _is_misranked(one: Row, other: Row) -> bool:
    less, more = sorted((one, other), key=lambda row: row["temp_bytes"])
    is_apart = more["temp_bytes"] > APART * less["temp_bytes"]
    return is_apart and more["estimated_bytes"] <= less["estimated_bytes"]
