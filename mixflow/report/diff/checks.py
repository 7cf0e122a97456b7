"""The checks of a diff: figures within thresholds, and passes that must have rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mixflow.report.diff.differences import EntryDiff, Failure, Figure, SnapshotDiff
from mixflow.report.diff.thresholds import Requirement, Threshold
from mixflow.report.diff.view import change, figure_name, value
from mixflow.report.snapshot.describe import Snapshot

OPTIONS = {"temp_bytes": "--max-memory", "flops": "--max-flops", "eqns": "--max-eqns"}
"""The option for each figure that may have a threshold."""


def failures(
    diff: SnapshotDiff,
    new: Snapshot,
    thresholds: Mapping[str, Threshold],
    requirements: Sequence[Requirement],
) -> Iterator[Failure]:
    """Every check that fails, in the order of the entries.

    Arguments:
        diff: its figures are checked.
        new: its rewrites are.
        thresholds: by the figure's name.
        requirements: what must have been rewritten.
    """
    for entry in diff.entries:
        for figure in entry.figures:
            if figure.name in thresholds and entry.status not in ("added", "removed"):
                yield from _over(entry, figure, thresholds[figure.name])
    for requirement in requirements:
        yield from _unmet(requirement, new)


def _over(entry: EntryDiff, figure: Figure, threshold: Threshold) -> Iterator[Failure]:
    if figure.old is None:
        return
    option = f"{OPTIONS[figure.name]} {threshold.text}"
    old, new = value(figure.name, figure.old), value(figure.name, figure.new)
    if figure.new is None:
        yield Failure(option, entry.name, f"{figure_name(figure.name)} is not known any more")
    elif figure.new > threshold.most(figure.old):
        words = f"{figure_name(figure.name)} {old} → {new} ({change(figure)})"
        yield Failure(option, entry.name, words)


def _unmet(requirement: Requirement, new: Snapshot) -> Iterator[Failure]:
    option, entries = f"--require {requirement.text}", new["entries"]
    if requirement.entry is not None and requirement.entry not in entries:
        yield Failure(option, requirement.entry, "there is no such entry")
        return
    names = sorted(entries) if requirement.entry is None else [requirement.entry]
    for name in names:
        if all(one["pass"] != requirement.name for one in entries[name]["rewrites"]):
            yield Failure(option, name, f"no rewrite by {requirement.name}")
