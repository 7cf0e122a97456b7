"""What differs between two snapshots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from typing import Any

from mixflow.compiler.ir.places import UNKNOWN, without_lines
from mixflow.report.diff.differences import (
    FIGURES,
    PLAIN_TEMP,
    Changes,
    EntryDiff,
    Figure,
    LineChange,
    RegionChange,
    SnapshotDiff,
)
from mixflow.report.diff.matching import match, match_alike
from mixflow.report.snapshot.describe import Snapshot

_Line = tuple[str, int]
"""A source line, and how many operations come from it."""

_VERSIONS = ("jax", "mixflow", "backend")


def compare(old: Snapshot, new: Snapshot, names: tuple[str, str]) -> SnapshotDiff:
    """The difference of two snapshots; what was measured by the clock is left out.

    Arguments:
        old, new: as `load_snapshot` gives them.
        names: what to call them.
    """
    entries: list[str] = sorted(old["entries"].keys() | new["entries"].keys())
    return SnapshotDiff(
        _identity(old, names[0]),
        _identity(new, names[1]),
        tuple(_warnings(old, new)),
        tuple(_entry(name, old["entries"].get(name), new["entries"].get(name)) for name in entries),
    )


def _identity(snapshot: Snapshot, name: str) -> dict[str, str]:
    return {"name": name, **{key: snapshot[key] for key in _VERSIONS}}


def _warnings(old: Snapshot, new: Snapshot) -> Iterator[str]:
    words = {"jax": "JAX", "mixflow": "mixflow", "backend": "backend"}
    for key in _VERSIONS:
        if old[key] != new[key]:
            yield (
                f"{words[key]} differs: {old[key]} and {new[key]}; figures and regions may differ "
                "for that alone"
            )


def _entry(name: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> EntryDiff:
    figures = _figures(old, new)
    if old is None or new is None:
        return EntryDiff(name, "added" if old is None else "removed", figures)
    regions, same_regions = _regions(old["after"]["regions"], new["after"]["regions"])
    found = EntryDiff(
        name,
        "changed",
        figures,
        _pair(old["target"], new["target"]),
        _pair(old["plan"], new["plan"]),
        _remarks(old["rewrites"], new["rewrites"], "what"),
        _remarks(old["declined"], new["declined"], "why"),
        regions,
        same_regions,
        _lines(old["after"]["operations"]["by_line"], new["after"]["operations"]["by_line"]),
        _alive(old["after"].get("peak"), new["after"].get("peak")),
    )
    is_same = old["after"]["fingerprint"] == new["after"]["fingerprint"] and not _differs(found)
    return EntryDiff(name, "same", figures, same_regions=same_regions) if is_same else found


def _differs(found: EntryDiff) -> bool:
    pairs = found.target or found.plan or found.rewrites or found.declined or found.regions
    return bool(pairs or found.alive or any(one.old != one.new for one in found.figures))


def _figures(old: dict[str, Any] | None, new: dict[str, Any] | None) -> tuple[Figure, ...]:
    def read(entry: dict[str, Any] | None, side: str, name: str) -> float | None:
        return None if entry is None else entry[side][name]

    own = [Figure(name, read(old, "after", name), read(new, "after", name)) for name in FIGURES]
    plain = (read(old, "before", "temp_bytes"), read(new, "before", "temp_bytes"))
    return (*own, Figure(PLAIN_TEMP, *plain))


def _pair(old: str, new: str) -> tuple[str, str] | None:
    return None if old == new else (old, new)


# --- remarks and buffers --------------------------------------------------------------------------


def _remarks(old: list[dict[str, str]], new: list[dict[str, str]], text: str) -> Changes:
    """Those that have only moved to another line are the same."""

    def moved(one: dict[str, str]) -> tuple[str, ...]:
        return one["pass"], without_lines(one["at"]), without_lines(one[text])

    def whole(one: dict[str, str]) -> tuple[str, ...]:
        return one["pass"], one["at"], one[text]

    found = match(old, new, [whole, moved, lambda one: (one["pass"], one["at"])])
    return Changes(found.gone, found.new, found.pairs[2])


def _alive(old: dict[str, Any] | None, new: dict[str, Any] | None) -> Changes:
    def key(at: Callable[[str], str]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
        return lambda one: (one["bytes"], one["aval"], one["primitive"], at(one["at"]))

    before, after = ([] if peak is None else peak["alive"] for peak in (old, new))
    found = match(before, after, [key(str), key(without_lines)])
    return Changes(found.gone, found.new)


# --- regions and lines ----------------------------------------------------------------------------


def _regions(
    old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> tuple[tuple[RegionChange, ...], int]:
    """The regions whose own operations differ, and how many do not."""

    def by(*names: str) -> Callable[[dict[str, Any]], tuple[str, ...]]:
        return lambda region: tuple(region[name] for name in names)

    own = "own_fingerprint"
    same = match(old, new, [by(own, "path", "at"), by(own, "at"), by(own, "path"), by(own)])
    found = match_alike(same.gone, same.new, _likeness)
    changes = [
        *(_region("changed", *pair) for pair in found.pairs[0]),
        *(_region("removed", one, None) for one in found.gone),
        *(_region("added", None, one) for one in found.new),
    ]
    changes.sort(key=lambda change: change.path)
    return tuple(changes), sum(map(len, same.pairs))


_SAME_PATH, _SAME_LINE = 0.25, 0.125
"""What to stand at the same place adds to the share of operations that two regions have in common:
enough to decide between partners that are nearly as good."""


def _likeness(old: dict[str, Any], new: dict[str, Any]) -> float:
    """How likely one region has become the other: by what they compute, then by where.

    The same line proves little, since what is written above may have moved any region there. The
    same path is all that a rewritten region keeps.
    """
    if old["operation"] != new["operation"]:
        return 0.0
    is_at_same_path = old["path"] == new["path"]
    is_at_same_line = old["at"] == new["at"] != UNKNOWN
    before, after = Counter[str](old["operations"]), Counter[str](new["operations"])
    shared = 2 * (before & after).total() / ((before + after).total() or 1)
    if not is_at_same_path and shared < (0.25 if is_at_same_line else 0.5):
        return 0.0
    return shared + _SAME_PATH * is_at_same_path + _SAME_LINE * is_at_same_line


def _region(status: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> RegionChange:
    named = new or old or {}
    counts = Counter[str](new["operations"] if new else {})
    counts.subtract(old["operations"] if old else {})
    more = {kind: count for kind, count in sorted(counts.items()) if count}
    ats = [one["at"] if one and one["at"] != UNKNOWN else None for one in (old, new)]
    return RegionChange(status, named["operation"], named["path"], ats[0], ats[1], more)


def _lines(old: dict[str, int], new: dict[str, int]) -> tuple[LineChange, ...]:
    """Lines in order are aligned by file and count, so that those which have only moved fit."""
    before, after = _in_order(old), _in_order(new)
    sides = [[(without_lines(at), count) for at, count in side] for side in (before, after)]
    matcher = SequenceMatcher(None, *sides, autojunk=False)
    changes: list[LineChange] = []
    for tag, *edges in matcher.get_opcodes():
        if tag == "equal":
            continue
        pairs = _paired(before[edges[0] : edges[1]], after[edges[2] : edges[3]])
        changes += [_line(one, other) for one, other in pairs if one != other]
    return tuple(changes)


def _in_order(lines: dict[str, int]) -> list[_Line]:
    known = [(at, count) for at, count in lines.items() if at != UNKNOWN]
    return sorted(known, key=lambda line: _order(line[0]))


def _paired(old: list[_Line], new: list[_Line]) -> Iterator[tuple[_Line | None, _Line | None]]:
    """Lines that have moved together are paired in order; others by their place."""
    if _moved_together(old, new):
        yield from zip(old, new, strict=True)
        return
    before, after = dict(old), dict(new)
    for at in sorted(before.keys() | after.keys(), key=_order):
        was, now = (((at, side[at]) if at in side else None) for side in (before, after))
        yield was, now


def _moved_together(old: list[_Line], new: list[_Line]) -> bool:
    places = [(*_order(was[0]), *_order(now[0])) for was, now in zip(old, new, strict=False)]
    shifts = {now - was for _, was, _, now in places}
    is_same_file = all(file == other for file, _, other, _ in places)
    return len(old) == len(new) and len(shifts) == 1 and is_same_file


def _order(at: str) -> tuple[str, int]:
    file, _, line = at.rpartition(":")
    return file, int(line) if line.isdigit() else 0


def _line(old: _Line | None, new: _Line | None) -> LineChange:
    (old_at, old_count), (new_at, new_count) = old or (None, 0), new or (None, 0)
    return LineChange(old_at, new_at, old_count, new_count)
