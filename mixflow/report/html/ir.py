"""Two texts of IR side by side, line by line, with what has changed marked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from mixflow.compiler.ir.places import places_in

MOST_ROWS = 3000
_CONTEXT = 3
_LONGEST = 200
_VALUE = re.compile(r"%\d+")


@dataclass(frozen=True)
class Cell:
    """Arguments:
    number: of the line.
    before, marked, after: its text; what has changed in it is `marked`.
    """

    number: int
    before: str
    marked: str = ""
    after: str = ""


@dataclass(frozen=True)
class Row:
    """Arguments:
    kind: "same", "changed", "gone" or "new".
    old, new: the lines; None where there is none.
    """

    kind: str
    old: Cell | None
    new: Cell | None


@dataclass(frozen=True)
class Block:
    """Arguments:
    is_folded: whether the rows are unchanged and far from any change.
    rows: at least one.
    """

    is_folded: bool
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Comparison:
    """Arguments:
    blocks: as many rows as are shown.
    left_out: how many more there are.
    """

    blocks: tuple[Block, ...]
    left_out: int


def side_by_side(before: str, after: str, most: int = MOST_ROWS) -> Comparison:
    """Compare two texts of IR. Values' numbers and indentation are no change.

    Arguments:
        before, after: printed modules.
        most: show no more rows than this.
    """
    rows = list(_rows(_lines(before), _lines(after)))
    return Comparison(tuple(_blocks(rows[:most])), max(len(rows) - most, 0))


def _lines(text: str) -> list[str]:
    return [_shortened(line) for line in places_in(text).splitlines()]


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def _key(line: str) -> str:
    return _VALUE.sub("%", line.strip())


def _rows(old: list[str], new: list[str]) -> Iterator[Row]:
    matcher = difflib.SequenceMatcher(None, [*map(_key, old)], [*map(_key, new)], autojunk=False)
    for tag, i, j, k, stop in matcher.get_opcodes():
        pairs = zip_longest(range(i, j), range(k, stop))
        for a, b in pairs:
            if tag == "equal":
                yield Row("same", Cell(a + 1, old[a]), Cell(b + 1, new[b]))
            elif a is None:
                yield Row("new", None, Cell(b + 1, new[b]))
            elif b is None:
                yield Row("gone", Cell(a + 1, old[a]), None)
            else:
                yield _changed(a + 1, old[a], b + 1, new[b])


def _changed(old_number: int, old: str, new_number: int, new: str) -> Row:
    """A row whose lines differ from after what they start with to before what they end with."""
    start = _common(old, new)
    end = _common(old[start:][::-1], new[start:][::-1])
    cells = _marked(old_number, old, start, end), _marked(new_number, new, start, end)
    return Row("changed", *cells)


def _common(left: str, right: str) -> int:
    """How many characters two texts have in common at their start."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))


def _marked(number: int, text: str, start: int, end: int) -> Cell:
    stop = len(text) - end
    return Cell(number, text[:start], text[start:stop], text[stop:])


def _blocks(rows: list[Row]) -> Iterator[Block]:
    """Rows in runs: those near a change, and those far from any."""
    near = [False] * len(rows)
    for place, row in enumerate(rows):
        if row.kind != "same":
            start, stop = max(place - _CONTEXT, 0), min(place + _CONTEXT + 1, len(rows))
            near[start:stop] = [True] * (stop - start)
    start = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or near[place] != near[start]:
            yield Block(not near[start], tuple(rows[start:place]))
            start = place
