"""The examples' figures as a page of Markdown, and their summary for the README."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.tables import made_with, markdown_table
from benchmarks.zoo.measure import HALVED, MATCHED, ZOO

Figures = dict[str, Any]

EQUAL = 1.1
"""Times within this factor of each other are called equal: runs differ by as much."""

_HEADS = {
    "plain": "plain",
    "checkpointed-step": "checkpointed step",
    "mixflow": "mixflow",
    MATCHED: "in the step's memory",
    HALVED: "at half",
}


def zoo_page(report: Figures, pictures: Iterable[str] = ()) -> str:
    """The whole page.

    Arguments:
        report: versions, machine, rounds and rows, as the command puts them together.
        pictures: the names of those beside it.
    """
    rows = report["rows"]
    parts = [
        "# The examples, measured",
        made_with(report),
        (
            "One meta-gradient of each program in `examples/`, in float32: by plain JAX, by plain "
            "JAX with a checkpointed step, by mixflow, and by mixflow within two budgets: what "
            "the checkpointed step needs, and half of what mixflow needs without a budget "
            "(arguments and results count there, and are a part that no plan can lower). Each in a "
            f"process of its own, run in turn; figures are medians over {report['rounds']} rounds. "
            "Relative error: of value and gradient against plain JAX, the largest of the other "
            "programs."
        ),
        _memory_table(rows),
        _time_table(rows),
        *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
        "## What was done, and what was left alone",
        *map(_details, rows),
    ]
    return "\n\n".join(parts) + "\n"


def _memory_table(rows: list[Figures]) -> str:
    heads = [f"temporaries (MB): {_HEADS[ZOO[0]]}", *(_HEADS[name] for name in ZOO[1:])]
    lines = [
        [
            row["example"],
            *(_cell(row["programs"][name], "temp_bytes", 1e6) for name in ZOO),
            times(row, "plain", "temp_bytes"),
            verdict(row),
        ]
        for row in rows
    ]
    return markdown_table(
        ["program", *heads, "plain / mixflow", "against the checkpointed step"], lines
    )


def _time_table(rows: list[Figures]) -> str:
    heads = [f"time (ms): {_HEADS[ZOO[0]]}", *(_HEADS[name] for name in ZOO[1:])]
    lines = [
        [
            row["example"],
            *(_cell(row["programs"][name], "run_s", 1e-3) for name in ZOO),
            *(_cell(row["programs"][name], "compile_s", 1.0) for name in ("plain", "mixflow")),
            f"{error:.0e}" if (error := _worst_error(row)) is not None else "",
        ]
        for row in rows
    ]
    return markdown_table(
        ["program", *heads, "compile (s): plain", "mixflow", "relative error"], lines
    )


def _cell(figures: Figures, name: str, unit: float) -> str:
    if figures["failed"] is not None:
        return "refused" if "budget" in figures["failed"] else "failed"
    return (
        f"{figures[name] / unit:.3g}"
        if figures[name] < 1e3 * unit
        else f"{figures[name] / unit:.0f}"
    )


def _worst_error(row: Figures) -> float | None:
    errors = [figures["relative_error"] for figures in row["programs"].values()]
    return max((error for error in errors if error is not None), default=None)


def ratio(row: Figures, base: str, figure: str, program: str = "mixflow") -> float | None:
    """A program's figure for 1 of another one's."""
    mine, other = (row["programs"][name] for name in (program, base))
    if mine["failed"] is not None or other["failed"] is not None or not other[figure]:
        return None
    return mine[figure] / other[figure]


def times(row: Figures, base: str, figure: str) -> str:
    """How many times mixflow's figure goes into another program's."""
    found = ratio(row, base, figure)
    return "" if not found else f"{1 / found:.1f}"


def verdict(row: Figures) -> str:
    """mixflow against plain JAX with a checkpointed step, in words."""
    memory, time = (ratio(row, "checkpointed-step", name) for name in ("temp_bytes", "run_s"))
    if memory is None or time is None:
        return "not compared"
    if memory >= 1:
        return f"**no less memory** ({memory:.2f}), {time:.2f} of its time"
    words = f"{memory:.2f} of its memory, {time:.2f} of its time"
    if time <= EQUAL:
        return words
    cause = _cause(row["programs"]["mixflow"]["rewrites"])
    return f"{words}: **slower**{cause}{_matched(row)}"


def _matched(row: Figures) -> str:
    """What mixflow makes of the checkpointed step's memory, in words."""
    memory, time = (
        ratio(row, "checkpointed-step", name, MATCHED) for name in ("temp_bytes", "run_s")
    )
    if memory is None or time is None:
        return ""
    return f"; with its memory as the budget: {memory:.2f} of its memory, {time:.2f} of its time"


def _cause(rewrites: list[Figures]) -> str:
    """What of a plan takes time that a checkpointed step does not."""
    texts = [one["text"] for one in rewrites]
    if any("each level" in text for text in texts):
        return ", as the steps run forward once more for each level"
    return ", as segments are rerun" if any("rerun from" in text for text in texts) else ""


def _details(row: Figures) -> str:
    ours = row["programs"]["mixflow"]
    lines = [f"### {row['example']}"]
    if ours["failed"] is not None:
        return "\n\n".join([*lines, f"- failed: {ours['failed']}"])
    plan = f"`{ours['plan']}`" if ours["plan"] else "none: the program is left as it is"
    found = [f"- plan: {plan}"]
    found += [f"- {one['pass']}, {one['at']}: {one['text']}" for one in ours["rewrites"]]
    found += [f"- declined: {one['pass']}: {one['text']}" for one in ours["declined"]]
    refused = row["programs"][HALVED]["failed"]
    if refused is not None:
        found.append(f"- at half: {refused}")
    return "\n\n".join([*lines, "\n".join(found)])


# --- the summary ---------------------------------------------------------------------------------

BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"


def summary(report: Figures) -> str:
    """A line for each example, as the README shows them."""
    lines = [
        [
            f"[{row['example']}](examples/{row['example']}.py)",
            *(_share(ratio(row, "plain", name)) for name in ("temp_bytes", "run_s")),
            *(_share(ratio(row, "checkpointed-step", name)) for name in ("temp_bytes", "run_s")),
        ]
        for row in report["rows"]
    ]
    medians = [
        _share(_median(ratio(row, base, name) for row in report["rows"]))
        for base in ("plain", "checkpointed-step")
        for name in ("temp_bytes", "run_s")
    ]
    heads = ["mixflow's share of", "plain JAX: memory", "time", "checkpointed step: memory", "time"]
    return f"{made_with(report)}\n\n" + markdown_table(heads, [*lines, ["median", *medians]])


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def has_marks(text: str) -> bool:
    """Whether a text has the two marks that a summary goes between."""
    return -1 < text.find(BEGIN) < text.find(END)


def with_summary(text: str, report: Figures) -> str:
    """A text with the summary between its two marks, which it has."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{summary(report)}\n{END}{after}"
