"""A diff as GitHub's markdown, short enough for a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mixflow.report.diff.differences import EntryDiff, SnapshotDiff
from mixflow.report.diff.view import (
    FIGURE_HEADS,
    IMPORTANCE,
    SAME,
    Item,
    Section,
    figure_rows,
    pairs,
    sections,
    sides,
    title,
)

MOST_CHARACTERS = 65536
"""The longest comment that GitHub takes."""

_ROUNDS = ((100, 20), (5, 0))
"""What sections are cut to: all of the long ones before any is cut to little or nothing."""
_LONGEST_TEXT = 400
_OPEN = frozenset({"rewrites lost", "rewrites gained", "declines new"})
"""The sections that are shown at once, where they are short; others are unfolded by a click."""
_MOST_OPEN = 5
_SPECIAL = re.compile(r"([\\`*{}<>|~#&@]|\](?=[(\[:])|\b_|_\b)")
_MARKS = {"same": "", "changed": "", "added": " (added)", "removed": " (removed)"}


def render_markdown(diff: SnapshotDiff, most: int = MOST_CHARACTERS) -> str:
    """The diff as markdown, of at most so many characters.

    What does not fit is left out, the least important first; how much that was is said.
    """
    shapes = _shapes(len(diff.entries))
    return next(text for shape in shapes if len(text := _render(diff, *shape)) <= most)


def _shapes(entries: int) -> Iterator[tuple[dict[str, int], int]]:
    """How many items of each section, and how many entries, from all to none."""
    limits: dict[str, int] = {}
    yield limits, entries
    for key, cut in [(key, cut) for cuts in _ROUNDS for key in IMPORTANCE for cut in cuts]:
        limits = {**limits, key: cut}
        yield limits, entries
    while entries:
        entries //= 2
        yield limits, entries


def _render(diff: SnapshotDiff, limits: dict[str, int], entries: int) -> str:
    lines = [f"### {escape(title(diff))}", "", escape(sides(diff)), ""]
    lines += [f"> **Warning**: {escape(one)}" for one in diff.warnings]
    lines += ["", *_failures(diff, entries), ""]
    shown = [one for one in diff.entries if one.status != "same"]
    for entry in shown[:entries]:
        lines += _entry(entry, limits)
    if shown[entries:]:
        lines += ["", f"… and {len(shown) - entries} more entries that differ."]
    lines += ["", _same([one.name for one in diff.entries if one.status == "same"])]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _same(names: list[str]) -> str:
    """The entries of which there is nothing to say, in one line."""
    if not names:
        return ""
    count = "1 entry is" if len(names) == 1 else f"{len(names)} entries are"
    return f"{count} the same: {escape(', '.join(names))}"


def _failures(diff: SnapshotDiff, most: int) -> list[str]:
    """The checks that failed; there may be several for each entry."""
    most = max(most, 1)
    lines = [
        f"- ❌ `{_code(one.option)}` {escape(one.entry)}: {escape(one.text)}"
        for one in diff.failures[:most]
    ]
    rest = len(diff.failures) - most
    return [*lines, f"- … and {rest} more checks that failed"] if rest > 0 else lines


def _entry(entry: EntryDiff, limits: dict[str, int]) -> list[str]:
    lines = ["", f"#### {escape(entry.name)}{_MARKS[entry.status]}", "", *_figures(entry)]
    for what, old, new in pairs(entry):
        lines += _folded(what, [f"- was `{_code(old)}`", f"- is `{_code(new)}`"])
    for section in sections(entry):
        lines += _section(section, limits.get(section.key, len(section.items)))
    return lines


def _figures(entry: EntryDiff) -> list[str]:
    """A table of those that differ, and a line of the others."""
    rows = figure_rows(entry)
    same = [f"{name} {old}" for name, old, _, change in rows if change == SAME]
    table = [_row(row) for row in rows if row[-1] != SAME]
    heads = [_row(FIGURE_HEADS), _row(("---", *("---:" for _ in FIGURE_HEADS[1:])))]
    lines = [*heads, *table] if table else []
    return [*lines, "", f"The same: {', '.join(same)}"] if same else lines


def _section(section: Section, most: int) -> list[str]:
    lines = [_item(item) for item in section.items[:most]]
    rest = len(section.items) - most
    if rest > 0:
        lines.append(f"- … {rest} more left out")
    if section.key in _OPEN and len(section.items) <= _MOST_OPEN:
        return ["", f"**{escape(section.title)}**", "", *lines]
    return _folded(f"{section.title}: {len(section.items)}", lines)


def _folded(title: str, lines: list[str]) -> list[str]:
    return ["", f"<details><summary>{escape(title)}</summary>", "", *lines, "", "</details>"]


def _item(item: Item) -> str:
    at = f"`{_code(item.at)}` " if item.at else ""
    return f"- `{item.sign}` {at}{escape(item.text)}"


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """A text that markdown shows as it is, on one line, cut if it is very long."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[1])};", _cut(text))


def _code(text: str) -> str:
    return _cut(text).replace("`", "'")


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[:_LONGEST_TEXT]}…"
