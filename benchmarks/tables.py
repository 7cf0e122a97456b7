"""Figures as pages of Markdown: what was measured, with what, and the ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.budget_sweep import is_within

Row = dict[str, Any]

_COLUMNS = {
    "temp_bytes": ("temporaries (MB)", 1e6, ".1f"),
    "resident_bytes": ("resident (MB)", 1e6, ".0f"),
    "run_s": ("time (s)", 1.0, ".2f"),
    "compile_s": ("compile (s)", 1.0, ".1f"),
    "gradient_steps": ("gradient steps", 1.0, ".2f"),
}
_RATIOS = {
    "temp_bytes": "temporaries",
    "resident_bytes": "resident memory",
    "run_s": "time",
    "compile_s": "compile time",
}


def page(report: dict[str, Any], pictures: Iterable[str] = ()) -> str:
    """The whole page. Figures are medians over the rounds; each round is in the JSON beside it.

    Arguments:
        report: as `benchmarks.report.reports` yields it.
        pictures: the names of those beside it.
    """
    parts = [_heading(report), table(report["rows"])]
    if report["ratios"]:
        parts.append(_ratios(report["ratios"]))
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _heading(report: dict[str, Any]) -> str:
    common = ", ".join(f"{name} {at}" for name, at in report["size"].items())
    return (
        f"# Reference program: {report['task'].replace('_', ' ')}\n\n"
        f"{made_with(report)} {report['dtype']}. Common to all rows: {common}. "
        f"{_rounds(report['rows'])}"
    )


def made_with(report: dict[str, Any]) -> str:
    """Versions and machine, a sentence."""
    versions, machine = report["versions"], report["machine"]
    return (
        f"JAX {versions['jax']}, Python {versions['python']}, mixflow {versions['mixflow']}; "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB."
    )


def _rounds(rows: list[Row]) -> str:
    rounds = max((len(row["rounds"]) for row in rows), default=0)
    return "Each program ran in a process of its own, " + (
        "once." if rounds == 1 else f"in turn with the others, {rounds} rounds."
    )


def table(rows: list[Row]) -> str:
    """A line for each program and size."""
    columns = [name for name in _COLUMNS if any(row[name] for row in rows)]
    heads = ["steps", "layers", "tokens", "program", *(_COLUMNS[name][0] for name in columns)]
    lines = [heads, ["---:"] * 3 + ["---"] + ["---:"] * len(columns)]
    for row in rows:
        size = [str(row["size"][name]) for name in ("steps", "layers", "tokens")]
        figures = [_figure(row, name) for name in columns] if not row["failed"] else []
        lines.append([*size, row["program"], *(figures or [row["failed"]])])
    return "\n".join(map(_line, lines))


def _figure(row: Row, name: str) -> str:
    _, unit, form = _COLUMNS[name]
    return "" if row[name] is None else format(row[name] / unit, form)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratios(ratios: dict[str, Any]) -> str:
    lines = [
        ["mixflow for 1 of the expert's", "median", "worst", "at"],
        ["---", "---:", "---:", "---"],
    ]
    for name, words in _RATIOS.items():
        if name in ratios:
            one = ratios[name]
            at = ", ".join(f"{one['at'][axis]} {axis}" for axis in ("steps", "layers", "tokens"))
            lines.append([words, f"{one['median']:.3f}", f"{one['worst']:.3f}", at])
    return "\n".join(map(_line, lines))


# --- estimates and budgets -----------------------------------------------------------------------


def estimates_page(report: dict[str, Any]) -> str:
    """XLA's figure and the estimate for each program and plan; what is wrong with them, if any."""
    heads = ["program", "plan", "XLA (MB)", "estimate (MB)", "ratio"]
    rows = [
        [
            row["program"],
            row["plan"],
            _megabytes(row["temp_bytes"]),
            _megabytes(row["estimated_bytes"]),
            f"{row['ratio']:.2f}",
        ]
        for row in report["rows"]
    ]
    ratios = [row["ratio"] for row in report["rows"]]
    spread = f"ratios from {min(ratios):.2f} to {max(ratios):.2f}"
    remarks = [spread, *report["complaints"]]
    return titled("Estimates of temporaries", report, heads, rows, remarks)


def budgets_page(report: dict[str, Any]) -> str:
    """What each program needs without a budget and for one; what one that is too small gives."""
    heads = ["steps", "layers", "tokens", "default (MB)", "checkpointed step (MB)", "budget (MB)"]
    heads += ["needed (MB)", "a quarter of the default"]
    names = ("default_bytes", "step_bytes", "budget_bytes", "needed_bytes")
    rows = [
        [
            *(str(row["size"][axis]) for axis in ("steps", "layers", "tokens")),
            *(_megabytes(row[name]) for name in names),
            "is refused" if row["refused"] else "is not refused",
        ]
        for row in report["rows"]
    ]
    over = [f"{row['size']}: over its budget" for row in report["rows"] if not row["within"]]
    kept = f"{len(rows) - len(over)} of {len(rows)} keep their budget"
    title = f"Budgets on the reference program: {report['task'].replace('_', ' ')}"
    return titled(title, report, heads, rows, [kept, *over])


def both_rules_page(report: dict[str, Any]) -> str:
    """Temporaries under both rules, and the ratios of bytes and of CPU seconds."""
    heads = ["program", "symmetric rule (bytes)", "transposed rule (bytes)", "ratio", "CPU seconds"]
    rows = [
        [
            row["program"],
            f"{row['symmetric_bytes']}",
            f"{row['transposed_bytes']}",
            f"{row['bytes_ratio']:.2f}",
            f"{row['cpu_ratio']:.2f}",
        ]
        for row in report["rows"]
    ]
    ratios = [row["bytes_ratio"] for row in report["rows"]]
    remarks = [
        f"temporaries: at most {max(ratios):.2f}, median {statistics.median(ratios):.2f}",
        "CPU seconds are those of a run, the transposed rule's for 1 of the symmetric rule's",
    ]
    return titled("Both rules side by side", report, heads, rows, remarks)


def budget_sweep_page(report: dict[str, Any]) -> str:
    """For each program the least, how many of its budgets it keeps, and the worst time for one."""
    heads = ["program", "plain JAX (MB)", "least of forced plans (MB)", "mixflow's least"]
    heads += ["budgets kept", "CPU seconds, median", "worst"]
    rows = [_swept(row) for row in report["rows"]]
    remarks = [
        "the last two for 1 of the fastest forced plan that fits",
        f"mixflow's least: at most {max(row['least_ratio'] for row in report['rows']):.3f}",
    ]
    return titled("Ten budgets for each example", report, heads, rows, remarks)


def _swept(row: Row) -> list[str]:
    budgets = row["budgets"]
    kept = list(filter(is_within, budgets))
    ratios = [one["cpu_ratio"] for one in kept]
    return [
        row["program"],
        _megabytes(row["plain_bytes"]),
        _megabytes(row["least_bytes"]),
        f"{row['least_ratio']:.3f}",
        f"{len(kept)} of {len(budgets)}",
        f"{statistics.median(ratios):.2f}" if ratios else "",
        f"{max(ratios):.2f}" if ratios else "",
    ]


def overhead_page(report: dict[str, Any]) -> str:
    """CPU seconds before XLA and with it, and resident memory before it, of both, with ratios."""
    figures = {
        "before_xla_s": ("before XLA (s)", 1.0, ".1f"),
        "whole_s": ("with XLA (s)", 1.0, ".1f"),
        "resident_bytes": ("resident before XLA (MB)", 1e6, ".0f"),
    }
    heads, rows = compared(report["rows"], figures)
    ratios = [
        [row["ratios"][name] for row in report["rows"]] for name in ("before_xla_s", "whole_s")
    ]
    worst = [f"at most {max(found):.2f}, median {statistics.median(found):.2f}" for found in ratios]
    remarks = [f"before XLA: {worst[0]}", f"with XLA: {worst[1]}"]
    return titled("What mixflow adds before a program runs", report, heads, rows, remarks)


def compared(
    rows: list[Row], figures: dict[str, tuple[str, float, str]]
) -> tuple[list[str], list[list[str]]]:
    """The heads and the cells of plain JAX's and mixflow's figures, with their ratios.

    Arguments:
        rows: as `benchmarks.overhead.overhead` yields them.
        figures: for each a title, a unit and a format.
    """

    def cells(row: Row, name: str) -> list[str]:
        _, unit, form = figures[name]
        both = [format(row[how][name] / unit, form) for how in ("plain", "mixflow")]
        return [*both, format(row["ratios"][name], ".2f")]

    heads = ["program"]
    for title, *_ in figures.values():
        heads += [f"JAX, {title}", "mixflow", "ratio"]
    lines = [
        [row["program"], *(cell for name in figures for cell in cells(row, name))] for row in rows
    ]
    return heads, lines


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    """A table; columns whose first row holds a number are aligned to the right."""
    aligned = ["---:" if _is_number(cell) else "---" for cell in (rows or [heads])[0]]
    return "\n".join(map(_line, [heads, aligned, *rows]))


def titled(
    title: str,
    report: dict[str, Any],
    heads: list[str],
    rows: list[list[str]],
    remarks: list[str],
) -> str:
    """A page with a heading, what it was measured with, a table, and remarks."""
    versions = report["versions"]
    line = f"JAX {versions['jax']}, Python {versions['python']}, mixflow {versions['mixflow']}."
    parts = [f"# {title}", line, markdown_table(heads, rows)]
    return "\n\n".join([*parts, "\n".join(f"- {one}" for one in remarks)]) + "\n"


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdecimal()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.4g}" if count < 1e9 else f"{count / 1e6:.0f}"
