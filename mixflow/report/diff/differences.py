"""What a diff of two snapshots consists of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FIGURES = ("temp_bytes", "total_bytes", "flops", "bytes_moved", "eqns")
PLAIN_TEMP = "plain_temp_bytes"


@dataclass(frozen=True)
class Figure:
    """A number before and after; None where it is not known."""

    name: str
    old: float | None
    new: float | None

    @property
    def percent(self) -> float | None:
        """By how much it has grown; None where that cannot be said."""
        if self.old is None or self.new is None or (not self.old and self.new):
            return None
        return 100 * (self.new - self.old) / self.old if self.old else 0.0


@dataclass(frozen=True)
class Changes:
    """What a list has lost and gained; `reworded` are pairs of the old and the new form."""

    lost: tuple[dict[str, Any], ...] = ()
    gained: tuple[dict[str, Any], ...] = ()
    reworded: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lost or self.gained or self.reworded)


@dataclass(frozen=True)
class RegionChange:
    """A region that was added, removed or changed, apart from the regions in it.

    Arguments:
        status: "added", "removed" or "changed".
        operation: whose region it is.
        path: from the function on, in the new program (in the old one, if it was removed).
        old_at, new_at: the source line, None where there is none.
        operations: for each kind of operation, how many more there are.
    """

    status: str
    operation: str
    path: str
    old_at: str | None
    new_at: str | None
    operations: dict[str, int]


@dataclass(frozen=True)
class LineChange:
    """A source line from which more or fewer operations come than before."""

    old_at: str | None
    new_at: str | None
    old: int
    new: int


@dataclass(frozen=True)
class EntryDiff:
    """What differs in one entry; lists are empty and pairs None where nothing does.

    Arguments:
        name: the entry's.
        status: "added", "removed", "changed" or "same".
        figures: of the optimised program, and `plain_temp_bytes` of plain JAX's.
        target, plan: old and new.
        rewrites, declined: by pass, source line and text; lines may move.
        regions: those that differ; `same_regions` counts the others.
        lines: by source line.
        alive: of the largest buffers at the peak, which are gone and which are new.
    """

    name: str
    status: str
    figures: tuple[Figure, ...] = ()
    target: tuple[str, str] | None = None
    plan: tuple[str, str] | None = None
    rewrites: Changes = field(default_factory=Changes)
    declined: Changes = field(default_factory=Changes)
    regions: tuple[RegionChange, ...] = ()
    same_regions: int = 0
    lines: tuple[LineChange, ...] = ()
    alive: Changes = field(default_factory=Changes)


@dataclass(frozen=True)
class Failure:
    """A check that failed: the option, the entry, and what was found."""

    option: str
    entry: str
    text: str


@dataclass(frozen=True)
class SnapshotDiff:
    """What differs between two snapshots.

    Arguments:
        old, new: their names, versions and backends.
        warnings: why figures may not be comparable.
        entries: in the order of their names.
        failures: the checks that failed.
    """

    old: dict[str, str]
    new: dict[str, str]
    warnings: tuple[str, ...]
    entries: tuple[EntryDiff, ...]
    failures: tuple[Failure, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether anything does, the versions included."""
        return bool(self.warnings) or any(entry.status != "same" for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `docs/graph-diffs.md` lists the fields."""
        found = asdict(self)
        for entry, own in zip(found["entries"], self.entries, strict=True):
            for figure, percent in zip(entry["figures"], own.figures, strict=True):
                figure["percent"] = percent.percent
        return found
