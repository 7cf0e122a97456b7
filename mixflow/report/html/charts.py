"""Charts of memory, as Vega-Lite specifications. Colours and fonts are the page's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from mixflow.compiler.ir.places import UNKNOWN
from mixflow.report.html.memory import Buffers, Memory, Moment
from mixflow.units import format_bytes

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, which nobody fetches
_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
_MOST_LINES, _LEAST_OF_LINE, _HEIGHT_OF_LINE = 12, 0.01, 30
_SMALLEST_SHARE = 1e-3
"""Of the peak: a logarithmic scale starts there."""

_TOOLTIP = {
    "program": "program",
    "memory": "alive",
    "value": "value",
    "at": "source",
    "code": "code",
}

_SHARE: dict[str, Any] = {
    "field": "share",
    "type": "quantitative",
    "title": "share of the program's order",
    "scale": {"domain": [0, 1]},
    "axis": {"format": ".0%", "grid": False, "tickCount": 5},
}


def timeline_chart(programs: Sequence[Memory]) -> dict[str, Any]:
    """Memory over the order of each program; a signal `cursor` moves a line through it."""
    peak = max(program.peak for program in programs)
    unit, size = unit_of(peak)
    values = [
        {
            "program": program.name,
            "share": one.share,
            "amount": one.bytes / size,
            "said": _said(program.name, one),
        }
        for program in programs
        for one in program.moments
    ]
    spec = {
        **frame("Memory alive over each program's order", values),
        "height": 280,
        "params": [{"name": "cursor", "value": 0}],
        "encoding": {"color": _color(programs)},
        "layer": [_area(unit), _points(), _cursor()],
    }
    return {"spec": spec, "log": [max(peak / size * _SMALLEST_SHARE, 1 / size), peak / size]}


def peak_chart(programs: Sequence[Memory]) -> dict[str, Any]:
    """What is alive at each program's peak, by the source line that computes it."""
    unit, size = unit_of(max(program.peak for program in programs))
    lines = {program.name: _by_line(program.buffers) for program in programs}
    places = {at for found in lines.values() for at in found}
    largest = {at: max(_bytes(one.get(at, ())) for one in lines.values()) for at in places}
    ordered = sorted(largest, key=lambda at: (-largest[at], at))
    shown = [at for at in ordered if largest[at] >= _LEAST_OF_LINE * largest[ordered[0]]]
    shown = shown[:_MOST_LINES]
    values = [
        {
            "line": _short(at),
            "program": name,
            "amount": _bytes(found[at]) / size,
            "memory": format_bytes(_bytes(found[at])),
            "value": f"{found[at][0].count} × {found[at][0].value}",
            "at": at,
            "code": found[at][0].code,
        }
        for name, found in lines.items()
        for at in shown
        if at in found
    ]
    spec = {
        **frame("Memory alive at the peak, by source line", values),
        "height": _HEIGHT_OF_LINE * len(shown),
        "mark": {"type": "bar", "cornerRadiusEnd": 2, "tooltip": True},
        "encoding": {
            "y": {
                "field": "line",
                "type": "nominal",
                "title": None,
                "sort": [_short(at) for at in shown],
                "scale": {"paddingInner": 0.3},
                "axis": {"labelLimit": 150, "ticks": False, "domain": False},
            },
            "yOffset": {"field": "program", "sort": [program.name for program in programs]},
            "x": {
                "field": "amount",
                "type": "quantitative",
                "title": f"alive ({unit})",
                "axis": {"tickCount": 5},
            },
            "color": _color(programs),
            "tooltip": _tooltip(),
        },
    }
    return {"spec": spec}


# --- the parts of a chart -------------------------------------------------------------------------


def frame(description: str, values: list[dict[str, Any]]) -> dict[str, Any]:
    """What every chart has: its description, its width and its data."""
    return {
        "$schema": _SCHEMA,
        "description": description,
        "width": "container",
        "data": {"values": values},
    }


def _color(programs: Sequence[Memory]) -> dict[str, Any]:
    return {
        "field": "program",
        "type": "nominal",
        "scale": {"domain": [program.name for program in programs]},
        "legend": {"orient": "top", "title": None},
    }


def _said(program: str, one: Moment) -> dict[str, str]:
    """What there is to say of a moment, in a tooltip and below the chart."""
    return {
        "program": program,
        "alive": format_bytes(one.bytes),
        "value": one.value,
        "source": one.at,
        "code": one.code,
    }


def _tooltip() -> list[dict[str, str]]:
    fields = _TOOLTIP.items()
    return [{"field": field, "type": "nominal", "title": title} for field, title in fields]


def _amount(unit: str) -> dict[str, Any]:
    return {
        "field": "amount",
        "type": "quantitative",
        "stack": None,
        "title": f"alive ({unit})",
        "axis": {"tickCount": 5},
    }


def _area(unit: str) -> dict[str, Any]:
    line = {"strokeWidth": 1.5}
    return {
        "mark": {"type": "area", "interpolate": "step-after", "opacity": 0.22, "line": line},
        "encoding": {"x": _SHARE, "y": _amount(unit)},
    }


def _points() -> dict[str, Any]:
    """The point that is nearest to the pointer, with what there is to say of it."""
    hover = {"type": "point", "on": "pointermove", "nearest": True, "clear": "pointerout"}
    is_near = {"param": "hover", "empty": False, "value": 1}
    return {
        "params": [{"name": "hover", "select": hover}],
        "mark": {
            "type": "point",
            "filled": True,
            "size": 70,
            "aria": False,
            # For "nearest" there is a second mark, whose datum is this one's; Vega-Lite 6.4 looks
            # for the fields of a tooltip in the wrong one of the two.
            "tooltip": {"expr": "datum.said || datum.datum.said"},
        },
        "encoding": {
            "x": _SHARE,
            "y": {"field": "amount", "type": "quantitative"},
            "opacity": {"condition": is_near, "value": 0},
        },
    }


def _cursor() -> dict[str, Any]:
    return {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "strokeDash": [4, 3]},
        "encoding": {
            "x": {"datum": {"expr": "cursor"}, "type": "quantitative"},
            "color": {"value": "gray"},
        },
    }


def unit_of(most: int) -> tuple[str, int]:
    """A binary unit in which an amount is at least one."""
    return next(((unit, size) for unit, size in _UNITS.items() if most >= size), ("B", 1))


# --- by source line -------------------------------------------------------------------------------


def _by_line(buffers: Sequence[Buffers]) -> dict[str, list[Buffers]]:
    found: defaultdict[str, list[Buffers]] = defaultdict(list)
    for one in buffers:
        found[one.at].append(one)
    return dict(found)


def _bytes(buffers: Sequence[Buffers]) -> int:
    return sum(one.bytes for one in buffers)


def _short(at: str) -> str:
    """A source line's file without its folders."""
    return "unknown" if at == UNKNOWN else PurePath(at).name
