"""A program's front as a chart and a table: what each amount of memory takes in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mixflow.planner.front import CHOSEN, PLAIN, STEP, Offer
from mixflow.report.html.charts import frame, unit_of
from mixflow.report.text import offer_cells
from mixflow.units import format_bytes

OTHERS = "other plans"
_KINDS = (PLAIN, CHOSEN, STEP, OTHERS)  # in the order of the page's colours
_SHAPES = ("circle", "diamond", "square", "triangle-up")


@dataclass(frozen=True)
class Row:
    """A plan of the front, in words; `budget` is the least that it is within."""

    name: str
    size: str
    time: str
    budget: str
    passes: str
    is_chosen: bool


def front_rows(offers: Sequence[Offer]) -> list[Row]:
    """The table's rows, the most memory first."""
    return [_row(offer) for offer in offers]


def _row(offer: Offer) -> Row:
    size, time, _ = offer_cells(offer)
    # A budget that is rounded down would be too small by its own plan's estimate.
    budget = f'memory_budget="{-(-int(offer.total_bytes) // 1024)}KiB"'
    name = ", ".join(offer.names)
    return Row(name, size, time, budget, offer.passes, CHOSEN in offer.names)


def front_chart(offers: Sequence[Offer]) -> dict[str, Any]:
    """Time against bytes, both by estimate, a point for each plan."""
    unit, size = unit_of(int(max(offer.total_bytes for offer in offers)))
    values = [
        {
            "kind": offer.names[-1] if offer.names else OTHERS,
            "amount": offer.total_bytes / size,
            "time": offer.time,
            "said": {
                "plan": ", ".join(offer.names) or OTHERS,
                "memory": format_bytes(int(offer.total_bytes)),
                "time": f"{offer.time:.2f} of plain JAX's",
                "passes": offer.passes,
            },
        }
        for offer in offers
    ]
    spec = {
        **frame("Time against memory, a point for each plan", values),
        "height": 240,
        "mark": {"type": "point", "filled": True, "size": 110, "tooltip": {"expr": "datum.said"}},
        "encoding": {
            "x": {
                "field": "amount",
                "type": "quantitative",
                "title": f"arguments, results and temporaries ({unit})",
                "scale": {"type": "log", "nice": True},
                "axis": {"tickCount": 6},
            },
            "y": {
                "field": "time",
                "type": "quantitative",
                "title": "time (plain JAX's is 1)",
                "scale": {"zero": True},
                "axis": {"tickCount": 5},
            },
            "color": {**_kinds(), "legend": {"orient": "top", "title": None}},
            "shape": {**_kinds(), "scale": {"domain": list(_KINDS), "range": list(_SHAPES)}},
        },
    }
    return {"spec": spec}


def _kinds() -> dict[str, Any]:
    return {"field": "kind", "type": "nominal", "scale": {"domain": list(_KINDS)}}
