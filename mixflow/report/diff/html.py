"""A diff as one self-contained HTML file."""

from __future__ import annotations

from typing import Any

from mixflow.report.diff.differences import EntryDiff, SnapshotDiff
from mixflow.report.diff.view import FIGURE_HEADS, Item, figure_rows, pairs, sections, sides, title
from mixflow.report.html.page import render_page

_CLASSES = {"+": "added", "-": "gone", "~": "changed"}


def render_html(diff: SnapshotDiff) -> str:
    """The diff as an HTML page: no scripts, and nothing loaded from elsewhere."""
    return render_page(
        "diff.html.j2",
        title=title(diff),
        sides=sides(diff),
        diff=diff,
        heads=FIGURE_HEADS,
        entries=[*map(_entry, diff.entries)],
        classes=_CLASSES,
    )


def _entry(entry: EntryDiff) -> dict[str, Any]:
    return {
        "name": entry.name,
        "status": entry.status,
        "figures": figure_rows(entry),
        "pairs": [
            (what, [Item("-", "", old), Item("+", "", new)]) for what, old, new in pairs(entry)
        ],
        "sections": sections(entry),
    }
