"""A comparison over several sizes, put together, and written as JSON and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison, compare
from benchmarks.files import write_report
from benchmarks.machine import machine, versions
from benchmarks.ratios import ratios
from benchmarks.reference import Size
from benchmarks.tables import page


def reports(
    sizes: list[Size], how: Comparison, say: Callable[[str], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """What is known after each size; the last is the whole.

    Each has: versions, machine, task, dtype, size (what of it all sizes share), rows (as `compare`
    returns them, each with its whole size) and ratios (mixflow over the expert; None where a row
    of either is missing).
    """
    rows: list[dict[str, Any]] = []
    for size in sizes:
        rows += compare(size, how, say)
        yield {
            "versions": versions(),
            "machine": machine(),
            "task": how.task,
            "dtype": how.dtype,
            "size": _shared(sizes),
            "rows": rows,
            "ratios": ratios(rows),
        }


def _shared(sizes: list[Size]) -> dict[str, int]:
    first, *others = map(asdict, sizes)
    return {name: at for name, at in first.items() if all(one[name] == at for one in others)}


def write(report: dict[str, Any], folder: Path) -> None:
    """Write `reference.json`, `reference.md` and the pictures to a folder, each file whole."""
    from benchmarks.plots import plots  # noqa: PLC0415  # matplotlib is needed for nothing else

    pictures = plots(report["rows"])
    write_report(folder, "reference", report, page(report, pictures), pictures)
