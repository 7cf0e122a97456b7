"""A diff as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from mixflow.report.diff_view import FIGURE_HEADS, Item, figure_rows, pairs, sections, sides, title
from mixflow.report.differences import EntryDiff, SnapshotDiff

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse }
th, td { border: 1px solid #ccc; padding: .2rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left }
code { font-size: 90% }
li { list-style: none }
.warning { background: #fff3cd; padding: .5rem }
.failed { background: #f8d7da; padding: .5rem }
.added { color: #146c2e }
.gone { color: #b3261e }
"""
_CLASSES = {"+": "added", "-": "gone", "~": "changed"}


def render_html(diff: SnapshotDiff) -> str:
    """The diff as an HTML page: no scripts, and nothing loaded from elsewhere."""
    parts = [f"<h1>{escape(title(diff))}</h1>", f"<p>{escape(sides(diff))}</p>"]
    parts += [f'<p class="warning">Warning: {escape(one)}</p>' for one in diff.warnings]
    parts += [
        f'<p class="failed">Failed: <code>{escape(one.option)}</code> '
        f"{escape(one.entry)}: {escape(one.text)}</p>"
        for one in diff.failures
    ]
    parts += [part for entry in diff.entries for part in _entry(entry)]
    head = f'<meta charset="utf-8"><title>{escape(title(diff))}</title><style>{_STYLE}</style>'
    page = ["<!DOCTYPE html>", '<html lang="en">', f"<head>{head}</head>", "<body>"]
    return "\n".join([*page, *parts, "</body>", "</html>", ""])


def _entry(entry: EntryDiff) -> list[str]:
    parts = [f"<h2>{escape(entry.name)}: {entry.status}</h2>"]
    if entry.status == "same":
        return parts
    rows = [_row("th", FIGURE_HEADS), *(_row("td", row) for row in figure_rows(entry))]
    parts.append(f"<table>\n{chr(10).join(rows)}\n</table>")
    for what, old, new in pairs(entry):
        items = [Item("-", "", old), Item("+", "", new)]
        parts.append(f"<h3>{escape(what)}</h3>{_list(items)}")
    for section in sections(entry):
        is_open = " open" if section.key.startswith("rewrites") else ""
        head = f"<summary>{escape(section.title)}: {len(section.items)}</summary>"
        parts.append(f"<details{is_open}>{head}{_list(section.items)}</details>")
    return parts


def _list(items: Iterable[Item]) -> str:
    return f"<ul>{''.join(map(_item, items))}</ul>"


def _item(item: Item) -> str:
    at = f"<code>{escape(item.at)}</code> " if item.at else ""
    return f'<li class="{_CLASSES[item.sign]}">{item.sign} {at}{escape(item.text)}</li>'


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
