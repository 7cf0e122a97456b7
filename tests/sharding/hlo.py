"""How often XLA's program lets the devices communicate."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_COLLECTIVE = re.compile(rf" ({'|'.join(KINDS)})(?:-start)?\(")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.\-]+)")
_TRIPS = re.compile(r"known_trip_count\D*(\d+)")


def needs(compiled: Any) -> dict[str, Any]:
    """What each device needs for a compiled program: bytes of temporaries, and collectives.

    All-reduces are counted by the arrays that they sum, and in `instructions` as XLA combines them.
    """
    text = compiled.as_text()
    return {
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "collectives": executed_collectives(text, by_arrays=True),
        "instructions": executed_collectives(text),
    }


def executed_collectives(text: str, *, by_arrays: bool = False) -> Counter[str]:
    """Collectives that one run executes on each device, those in loops once for each trip.

    Arguments:
        text: `compiled.as_text()`, the program after XLA's passes. Its loops are scans, whose trip
            counts XLA knows; conditionals are not looked into.
        by_arrays: count an all-reduce once for each array that it sums.
    """
    entry, computations = _computations(text)
    return _executed(entry, computations, by_arrays)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """The entry's name, and each computation's lines by its name."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            name = head[2]
            entry = name if head[1] else entry
        found.setdefault(name, []).append(line)
    return entry, found


def _executed(name: str, computations: dict[str, list[str]], by_arrays: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in computations[name]:
        own = _COLLECTIVE.search(line)
        if own:
            counts[own[1]] += _arrays(line, own) if by_arrays and own[1] == "all-reduce" else 1
        times = _trips(line) if " while(" in line else 1
        for called in _CALLED.findall(line):
            for kind, count in _executed(called, computations, by_arrays).items():
                counts[kind] += times * count
    return counts


def _arrays(line: str, collective: re.Match[str]) -> int:
    """How many arrays a collective takes: XLA combines those that are there at the same time."""
    return line[collective.end() :].split(")", maxsplit=1)[0].count("%")


def _trips(line: str) -> int:
    known = _TRIPS.search(line)
    assert known is not None, f"a loop of unknown length: {line}"
    return int(known[1])
