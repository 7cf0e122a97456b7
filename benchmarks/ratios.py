"""One program's figures over another's."""

from __future__ import annotations

import json
import statistics
from typing import Any

Row = dict[str, Any]

_FIGURES = "temp_bytes", "resident_bytes", "run_s", "compile_s"


def ratios(
    rows: list[Row], program: str = "mixflow", base: str = "expert"
) -> dict[str, Any] | None:
    """What `program` takes for each unit that `base` takes, over all sizes that have both.

    Each size's ratio is the median over its rounds.

    Returns:
        For each figure the median ratio, the worst, and the size that it is the worst at; None
        where no size has both programs.
    """
    by_size: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_size.setdefault(json.dumps(row["size"]), {})[row["program"]] = row
    pairs = [(two[program], two[base]) for two in by_size.values() if {program, base} <= two.keys()]
    found = {name: _worst(pairs, name) for name in _FIGURES}
    return {name: worst for name, worst in found.items() if worst} or None


def _worst(pairs: list[tuple[Row, Row]], name: str) -> dict[str, Any] | None:
    ratios = [(ratio, row["size"]) for row, base in pairs if (ratio := _ratio(row, base, name))]
    if not ratios:
        return None
    worst, at = max(ratios, key=lambda ratio: ratio[0])
    median = statistics.median(ratio for ratio, _ in ratios)
    return {"median": median, "worst": worst, "at": at}


def _ratio(row: Row, base: Row, name: str) -> float | None:
    pairs = zip(row["rounds"], base["rounds"], strict=False)
    found = [a[name] / b[name] for a, b in pairs if a.get(name) and b.get(name)]
    return statistics.median(found) if found else None
