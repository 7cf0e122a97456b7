"""Figures side by side, and what is alive at the peak, as text."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mixflow.runtime.bench.rounds import NAMES, Bench, Which
from mixflow.units import format_bytes

_HEADS = ("program", "run", "least – most", "ratio", "temporaries", "ratio", "resident", "compile")


def render(bench: Bench) -> Group:
    """The figures for rich's console."""
    entry, how = bench.entry, bench.how
    title = f"{entry.name}: {bench.target or 'not measured'} (JAX {entry.jax}, {entry.backend})"
    table = Table(title=title, title_justify="left", title_style="bold")
    for position, head in enumerate(_HEADS):
        table.add_column(head, justify="left" if position == 0 else "right", no_wrap=True)
    for which in NAMES:
        table.add_row(*_cells(bench, which))
    failed = [
        Text(f"{NAMES[which]}: {row.failed}") for which, row in bench.rows.items() if row.failed
    ]
    return Group(
        table, Text(f"medians over the rounds ({how.rounds}); runs in each: {how.runs}"), *failed
    )


def _cells(bench: Bench, which: Which) -> tuple[str, ...]:
    row = bench.rows[which]
    run, temp = row.spread("run_s"), row.spread("temp_bytes")
    resident, compile_s = row.spread("resident_bytes"), row.spread("compile_s")
    if run is None or temp is None or resident is None or compile_s is None:
        return (NAMES[which], *("-" for _ in _HEADS[1:]))
    return (
        NAMES[which],
        f"{1e3 * run.median:.3g} ms",
        f"{1e3 * run.min:.3g} – {1e3 * run.max:.3g} ms",
        _ratio(bench, which, "run_s"),
        format_bytes(temp.median),
        _ratio(bench, which, "temp_bytes"),
        format_bytes(resident.median),
        f"{compile_s.median:.1f} s",
    )


def _ratio(bench: Bench, which: Which, figure: str) -> str:
    ratio = 1.0 if which == "before" else bench.ratio(figure)
    return "-" if ratio is None else f"{ratio:.2f}×"


def render_peaks(profile: dict[str, Any]) -> str:
    """What is alive at the peak of an entry's programs, as plain text."""
    parts = [_peak(profile, which) for which in NAMES]
    return "\n".join(line for part in parts for line in [*part, ""])


def _peak(profile: dict[str, Any], which: Which) -> list[str]:
    found = profile[which]
    title = f"{profile['entry']}, {NAMES[which]} (JAX {profile['jax']}, {profile['backend']})"
    if "failed" in found:
        return [f"{title}: {found['failed']}"]
    temp, listed = format_bytes(found["temp_bytes"]), format_bytes(found["listed_temp_bytes"])
    return [
        f"{title}: {format_bytes(found['peak_bytes'])} at the peak, {listed} of it temporaries",
        f"(XLA reserves {temp} for temporaries)",
        "",
        *_aligned([("bytes", "kind", "shape", "operation", "source"), *_grouped(found["buffers"])]),
    ]


def _grouped(buffers: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Buffers that differ in nothing as one line, with their number; the most bytes first."""
    alike = Counter(tuple(buffer.values()) for buffer in buffers)
    ordered = sorted(alike.items(), key=lambda item: -item[0][0] * item[1])
    return [
        (f"{size * count}", kind, f"{count} × {shape}" if count > 1 else shape, operation, source)
        for (size, kind, shape, operation, source), count in ordered
    ]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if position == 0 else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
