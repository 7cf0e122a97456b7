"""Pictures of the examples' memory and time, and of long loops."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.plots import FIGURES, png

Figures = dict[str, Any]


def zoo_plots(rows: list[Figures]) -> dict[str, bytes]:
    """PNG files by name: each example's memory and time, as shares of plain JAX's."""
    return {f"zoo_{name}.png": _shares(name, rows) for name in FIGURES}


def _shares(name: str, rows: list[Figures]) -> bytes:
    rows = [row for row in rows if row["programs"]["plain"].get(name)]
    picture = Figure(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    place = picture.subplots()
    programs = [one for one in (rows[0]["programs"] if rows else ()) if one != "plain"]
    height = 0.8 / max(1, len(programs))
    for number, program in enumerate(programs):
        shares = [_share(row["programs"], program, name) for row in rows]
        at = [line + height * (number - (len(programs) - 1) / 2) for line in range(len(rows))]
        place.barh(at, shares, height, label=program)
    place.axvline(1.0, color="black", linewidth=0.8)
    place.set_yticks(range(len(rows)), [row["example"] for row in rows])
    place.invert_yaxis()
    what, _, _ = FIGURES[name][0].partition(" (")
    place.set_xlabel(f"{what}, plain JAX = 1")
    picture.legend(loc="outside upper center", ncols=2)
    return png(picture)


def _share(programs: Figures, program: str, name: str) -> float:
    found = programs[program].get(name)
    return (found or 0.0) / programs["plain"][name]


def loops_plots(rows: list[Figures]) -> dict[str, bytes]:
    """PNG files by name: memory and time against the number of steps, for each example."""
    examples = list(dict.fromkeys(row["example"] for row in rows))
    return {f"loops_{name}.png": _curves(name, rows, examples) for name in FIGURES}


def _curves(name: str, rows: list[Figures], examples: list[str]) -> bytes:
    picture = Figure(figsize=(4.5 * len(examples), 3.5), layout="constrained")
    label, unit = FIGURES[name]
    for place, example in zip(
        picture.subplots(1, len(examples), squeeze=False)[0], examples, strict=True
    ):
        own = [row for row in rows if row["example"] == example]
        for program in own[0]["programs"]:
            points = [
                (row["steps"], row["programs"][program][name] / unit)
                for row in own
                if row["programs"][program].get(name)
            ]
            if points:
                place.plot(*zip(*points, strict=True), marker="o", label=program)
        place.set_xscale("log", base=2)
        place.set_yscale("log")
        place.set_xlabel("steps")
        place.set_ylabel(label)
        place.set_title(example, fontsize=9)
        place.legend()
    return png(picture)
