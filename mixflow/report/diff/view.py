"""A diff in words: what every format shows, in one order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mixflow.compiler.ir.places import UNKNOWN
from mixflow.report.diff.differences import Changes, EntryDiff, Figure, RegionChange, SnapshotDiff
from mixflow.units import format_bytes

FIGURE_HEADS = ("figure", "before", "after", "change")
SAME = "same"
"""What stands under "change" where there is none."""
_NAMES = {
    "temp_bytes": "temporaries",
    "total_bytes": "total memory",
    "flops": "FLOPs",
    "bytes_moved": "bytes moved",
    "eqns": "equations",
    "plain_temp_bytes": "plain JAX's temporaries",
}
_MEMORY = frozenset({"temp_bytes", "total_bytes", "bytes_moved", "plain_temp_bytes"})


@dataclass(frozen=True)
class Item:
    """Arguments:
    sign: "+", "-" or "~".
    at: the source line, or empty.
    text: what is there.
    """

    sign: str
    at: str
    text: str


@dataclass(frozen=True)
class Section:
    """Arguments:
    key: for those who leave sections out.
    title: its heading.
    items: at least one.
    """

    key: str
    title: str
    items: tuple[Item, ...]


_UNSEEN = Item("~", "", "none: a custom derivative rule differs, or the figures alone")

IMPORTANCE = (
    *("alive", "lines", "regions", "declines gone", "declines new"),
    *("rewrites reworded", "rewrites gained", "rewrites lost"),
)
"""The keys of sections, the least important first."""


def title(diff: SnapshotDiff) -> str:
    """The names of what is compared."""
    return f"{diff.old['name']} → {diff.new['name']}"


def sides(diff: SnapshotDiff) -> str:
    """Versions and backends."""
    sides = [
        f"JAX {side['jax']}, mixflow {side['mixflow']}, {side['backend']}"
        for side in (diff.old, diff.new)
    ]
    return " → ".join(dict.fromkeys(sides))


# --- figures --------------------------------------------------------------------------------------


def figure_name(name: str) -> str:
    """What a figure is called."""
    return _NAMES[name]


def value(name: str, number: float | None) -> str:
    """A figure's number with its unit; "?" where it is not known."""
    if number is None:
        return "?"
    return format_bytes(number) if name in _MEMORY else f"{number:,.10g}"


def change(figure: Figure) -> str:
    """By how much a figure has grown."""
    if figure.old == figure.new:
        return SAME
    percent = figure.percent
    return "?" if percent is None else f"{percent:+,.2f}%"


def figure_rows(entry: EntryDiff) -> list[tuple[str, str, str, str]]:
    """The table of an entry's figures, under `FIGURE_HEADS`."""
    return [
        (figure_name(one.name), _shown(one, one.old), _shown(one, one.new), _change(entry, one))
        for one in entry.figures
    ]


def _shown(figure: Figure, number: float | None) -> str:
    return value(figure.name, number)


def _change(entry: EntryDiff, figure: Figure) -> str:
    return entry.status if entry.status in ("added", "removed") else change(figure)


# --- sections -------------------------------------------------------------------------------------


def sections(entry: EntryDiff) -> list[Section]:
    """What has changed in an entry, the most important first; empty sections are left out."""
    items = {
        "rewrites lost": _remarks("-", entry.rewrites.lost),
        "rewrites gained": _remarks("+", entry.rewrites.gained),
        "rewrites reworded": _reworded(entry.rewrites),
        "declines new": [*_remarks("+", entry.declined.gained), *_reworded(entry.declined)],
        "declines gone": _remarks("-", entry.declined.lost),
        "regions": [_region(one) for one in entry.regions],
        "lines": list(_lines(entry)),
        "alive": [*_alive("-", entry.alive.lost), *_alive("+", entry.alive.gained)],
    }
    same = f" ({entry.same_regions} are the same)" if entry.same_regions else ""
    titles = {
        "rewrites lost": "rewrites LOST",
        "regions": f"regions changed{same}",
        "lines": "operations by source line",
        "alive": "alive at the peak",
    }
    found = [Section(key, titles.get(key, key), tuple(one)) for key, one in items.items() if one]
    is_unseen = entry.status == "changed" and not found and not pairs(entry)
    return [Section("regions", titles["regions"], (_UNSEEN,))] if is_unseen else found


def pairs(entry: EntryDiff) -> list[tuple[str, str, str]]:
    """What there is one of, if it changed: its name, the old and the new."""
    found = (("target", entry.target), ("plan", entry.plan))
    return [(name, pair[0] or "none", pair[1] or "none") for name, pair in found if pair]


def _remarks(sign: str, remarks: tuple[dict[str, Any], ...]) -> list[Item]:
    return [Item(sign, _places(one["at"]), f"{one['pass']}: {_text(one)}") for one in remarks]


def _reworded(changes: Changes) -> list[Item]:
    return [
        Item("~", _places(old["at"], new["at"]), f"{new['pass']}: {_text(new)} (was: {_text(old)})")
        for old, new in changes.reworded
    ]


def _text(remark: dict[str, Any]) -> str:
    return " ".join(remark["what" if "what" in remark else "why"].split())


def _region(region: RegionChange) -> Item:
    sign = {"added": "+", "removed": "-", "changed": "~"}[region.status]
    counts = [f"{count:+d} {kind}" for kind, count in region.operations.items()]
    what = ", ".join(counts) or "other operands or parameters"
    text = f"{region.operation} {region.path}: {what}"
    return Item(sign, _places(region.old_at, region.new_at), text)


def _lines(entry: EntryDiff) -> Iterator[Item]:
    for line in entry.lines:
        sign = "+" if line.old_at is None else "-" if line.new_at is None else "~"
        text = f"{line.old} → {line.new} operations"
        yield Item(sign, _places(line.old_at, line.new_at), text)


def _places(old: str | None, new: str | None = None) -> str:
    return " → ".join(dict.fromkeys(at for at in (old, new) if at and at != UNKNOWN))


def _alive(sign: str, buffers: tuple[dict[str, Any], ...]) -> list[Item]:
    return [
        Item(
            sign,
            _places(one["at"]),
            f"{format_bytes(one['bytes'])} {one['aval']} by {one['primitive']}",
        )
        for one in buffers
    ]
