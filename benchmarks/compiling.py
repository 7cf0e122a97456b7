"""How long programs take to compile whose code is repeated, against how often it is.

Gradient steps, layers and tasks that are written out in Python: plain JAX traces, differentiates
and compiles each copy, mixflow makes a loop of them where that pays.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.plots import png
from benchmarks.tables import compared, titled

Row = dict[str, Any]

SIZES = {"Adam steps": (25, 50, 100), "layers": (6, 12, 24), "tasks": (2, 4, 8)}
"""How often code is repeated, for kinds of programs in `benchmarks.overhead.GROWING`."""

_HOW = {"plain": "JAX", "mixflow": "mixflow"}


def sized(largest: int | None) -> list[str]:
    """The programs by their names: "25 Adam steps" and so on, up to a size."""
    return [
        f"{size} {kind}"
        for kind, sizes in SIZES.items()
        for size in sizes
        if largest is None or size <= largest
    ]


def compiling_page(report: dict[str, Any]) -> str:
    """CPU seconds from the call to the executable, and XLA's temporaries, with ratios."""
    figures = {
        "whole_s": ("CPU seconds", 1.0, ".1f"),
        "temp_bytes": ("temporaries (MB)", 1e6, ".2f"),
    }
    heads, rows = compared(report["rows"], figures)
    remark = "CPU seconds are those from the call to the executable, every cache empty."
    picture = "\n![CPU seconds to compile](compile.png)\n"
    return titled("Code that is repeated", report, heads, rows, [remark]) + picture


def compiling_plot(rows: list[Row]) -> bytes:
    """CPU seconds against size, a picture for each kind of program, as a PNG."""
    kinds = list(dict.fromkeys(_kind(row) for row in rows))
    picture = Figure(figsize=(4.0 * len(kinds), 3.2), layout="constrained")
    places = picture.subplots(1, len(kinds), squeeze=False)[0]
    places[0].set_ylabel("CPU seconds to compile")
    for place, kind in zip(places, kinds, strict=True):
        some = [row for row in rows if _kind(row) == kind]
        sizes = [int(row["program"].split()[0]) for row in some]
        for how, label in _HOW.items():
            place.plot(sizes, [row[how]["whole_s"] for row in some], marker="o", label=label)
        place.set_xlabel(kind)
        place.set_xticks(sizes)
        place.set_ylim(bottom=0)
        place.legend()
    return png(picture)


def _kind(row: Row) -> str:
    return row["program"].split(" ", 1)[1]
