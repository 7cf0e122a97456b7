"""A diff as tables on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from mixflow.report.diff.differences import EntryDiff, SnapshotDiff
from mixflow.report.diff.view import FIGURE_HEADS, Item, figure_rows, pairs, sections, sides, title

_COLOURS = {"+": "green", "-": "red", "~": "yellow"}


def render(diff: SnapshotDiff) -> Group:
    """The diff for rich's console."""
    head = Text.assemble((title(diff), "bold"), f"  ({sides(diff)})")
    warnings = [Text(f"warning: {one}", style="yellow") for one in diff.warnings]
    parts = [part for entry in diff.entries for part in _entry(entry)]
    failed = [
        Text(f"failed: {one.option}: {one.entry}: {one.text}", style="bold red")
        for one in diff.failures
    ]
    return Group(head, *warnings, *parts, *failed)


def render_text(diff: SnapshotDiff) -> str:
    """The diff as plain text."""
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(render(diff), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _entry(entry: EntryDiff) -> Iterator[Table | Text]:
    name = f"{entry.name}: {entry.status}"
    if entry.status == "same":
        yield Text(name, style="bold")
        return
    table = Table(title=name, title_justify="left", title_style="bold")
    for place, head in enumerate(FIGURE_HEADS):
        table.add_column(head, justify="right" if place else "left", no_wrap=True)
    for row in figure_rows(entry):
        table.add_row(*row)
    yield table
    for what, old, new in pairs(entry):
        yield Text.assemble((f"{what}\n", "bold"), f"  - {old}\n", f"  + {new}")
    for section in sections(entry):
        yield Text(section.title, style="bold")
        yield from map(_item, section.items)


def _item(item: Item) -> Text:
    at = f"{item.at}  " if item.at else ""
    return Text.assemble("  ", (item.sign, _COLOURS[item.sign]), f" {at}{item.text}")
