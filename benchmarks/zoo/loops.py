"""Long training loops: memory and time against the number of steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.tables import made_with, markdown_table
from benchmarks.zoo.measure import How, Say, measure

Figures = dict[str, Any]

PROGRAMS = ("plain", "checkpointed-step", "replay", "mixflow")
"""What is compared; the replay is a loop on the host."""


def loop_row(model: Path, steps: int, how: How, say: Say) -> Figures:
    """An example's figures at a number of steps.

    Arguments:
        model: the example's file; its constant INNER_STEPS is set.
        steps: T.
        how: rounds and runs.
        say: is told what is being measured.
    """
    how = replace(how, programs=PROGRAMS, constants={"INNER_STEPS": steps})
    return {"example": model.stem, "steps": steps, "programs": measure(model, how, say)}


def loops_page(report: Figures, pictures: Iterable[str] = ()) -> str:
    """The whole page."""
    parts = [
        "# Long loops",
        made_with(report),
        (
            "One meta-gradient through T training steps, in float32: by plain JAX, by plain JAX "
            "with a checkpointed step, by a loop on the host that replays steps as REPLAY does "
            "(a tree of arity 4), and by mixflow. Each in a process of its own, run in turn; "
            f"figures are medians over {report['rounds']} rounds. Temporaries in MB, "
            "time in seconds."
        ),
        *(_table(name, report["rows"]) for name in dict.fromkeys(_examples(report["rows"]))),
        *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _examples(rows: list[Figures]) -> Iterable[str]:
    return (row["example"] for row in rows)


def _table(example: str, rows: list[Figures]) -> str:
    heads = [
        "T",
        *(f"{name}: memory" for name in PROGRAMS),
        *(f"{name}: time" for name in PROGRAMS),
    ]
    lines = [
        [
            str(row["steps"]),
            *(_cell(row["programs"][name], "temp_bytes", 1e6) for name in PROGRAMS),
            *(_cell(row["programs"][name], "run_s", 1.0) for name in PROGRAMS),
        ]
        for row in rows
        if row["example"] == example
    ]
    return f"## {example}\n\n{markdown_table(heads, lines)}"


def _cell(figures: Figures, name: str, unit: float) -> str:
    return "failed" if figures["failed"] is not None else f"{figures[name] / unit:.3g}"
