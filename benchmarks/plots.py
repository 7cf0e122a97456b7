"""Pictures of a comparison: memory and time by program, or against steps, depth and length."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]

FIGURES = {"temp_bytes": ("temporaries (MB)", 1e6), "run_s": ("time (s)", 1.0)}
"""What is drawn: its label, and its unit."""

_AXES = {"steps": "inner steps", "layers": "layers", "tokens": "tokens"}


def plots(rows: list[Row]) -> dict[str, bytes]:
    """PNG files by name; one for each figure that was measured.

    Where the rows have several sizes, a figure is drawn against each axis on which they differ,
    the other two at their largest. Otherwise it is a bar for each program.
    """
    measured = {name: [row for row in rows if row[name]] for name in FIGURES}
    return {f"{name}.png": _picture(name, some) for name, some in measured.items() if some}


def _picture(name: str, rows: list[Row]) -> bytes:
    axes = [axis for axis in _AXES if len(_values(rows, axis)) > 1]
    picture = Figure(figsize=(4.5 * max(1, len(axes)), 3.5), layout="constrained")
    places = picture.subplots(1, max(1, len(axes)), squeeze=False, sharey=True)[0]
    places[0].set_ylabel(FIGURES[name][0])
    if not axes:
        _bars(places[0], name, rows)
    for place, axis in zip(places, axes, strict=False):
        _lines(place, name, axis, rows)
    places[0].set_ylim(bottom=0)  # after all is drawn: it ends the scaling, which they share
    return png(picture)


def png(picture: Figure) -> bytes:
    """A picture as a PNG file's content."""
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _bars(place: Axes, name: str, rows: list[Row]) -> None:
    unit = FIGURES[name][1]
    bars = place.bar([row["program"] for row in rows], [row[name] / unit for row in rows])
    place.bar_label(bars, fmt="{:,.4g}")
    place.margins(y=0.1)
    place.tick_params("x", rotation=20)


def _lines(place: Axes, name: str, axis: str, rows: list[Row]) -> None:
    unit = FIGURES[name][1]
    others = {other: max(_values(rows, other)) for other in _AXES if other != axis}
    rows = [row for row in rows if all(row["size"][key] == at for key, at in others.items())]
    for program in dict.fromkeys(row["program"] for row in rows):
        points = sorted((r["size"][axis], r[name] / unit) for r in rows if r["program"] == program)
        place.plot(*zip(*points, strict=True), marker="o", label=program)
    place.set_xlabel(_AXES[axis])
    place.set_title(", ".join(f"{at} {_AXES[key]}" for key, at in others.items()), fontsize=9)
    place.set_xticks(_values(rows, axis))
    place.legend()


def _values(rows: Iterable[Row], axis: str) -> list[int]:
    return sorted({row["size"][axis] for row in rows})
