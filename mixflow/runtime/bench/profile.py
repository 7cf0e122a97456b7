"""What is alive when a program's temporaries are at their peak, by XLA's account.

XLA's own list of that leaves out what an instruction reads for the last time. It is therefore made
here, of XLA's live ranges and of the places that it gave the buffers.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixflow.errors import MixflowError
from mixflow.runtime.bench.hlo import Origins, read_origins

_RANGE = re.compile(r"    (.+?)(\{[\d,]*\}):(\d+)-(\d+)$", re.MULTILINE)
_ALLOCATION = re.compile(r"allocation (\d+): size \d+, (.*):$")
_VALUE = re.compile(
    r" value: <\d+ (\S+?)(\{[\d,]*\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)"
)
_LAYOUT = re.compile(r"(?<=\])\{[^}]*\}")
# In the order of trying: the words of XLA's text for an allocation, and what they mean.
_KINDS = {
    "parameter": "argument",
    "constant": "constant",
    "live-out": "result",
    "temp": "temporary",
}

_Key = tuple[str, str]  # an instruction, and an index into its tuple
_Slot = tuple[int, int, int]  # allocation, offset, size


@dataclass(frozen=True)
class Buffer:
    """Arguments:
    bytes: its size.
    kind: "temporary", "argument", "result" or "constant", by where XLA put it.
    shape: as in HLO, without layout.
    operation: the operation that made it, by JAX's name for it; else the instruction's name.
    source: file and line; empty for arguments and what XLA made by itself.
    """

    bytes: int
    kind: str
    shape: str
    operation: str
    source: str


@dataclass(frozen=True)
class _Value:
    """Where XLA put a value, and what it is."""

    slot: _Slot
    kind: str
    shape: str


def peak_of(lowered: Any) -> dict[str, Any]:
    """Compile a program, and list what is alive when its temporaries are at their peak.

    Arguments:
        lowered: a `jax.stages.Lowered`.

    Returns:
        For JSON: `temp_bytes` as XLA reserves them, `listed_temp_bytes` of `buffers` that are
        temporaries, `peak_bytes` of all buffers, and `buffers`, the largest first.

    Raises:
        MixflowError: XLA wrote no list for this backend.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        memory: Any = lowered.compile(compiler_options=options).memory_analysis()
        buffers = _read(Path(folder))
    return {
        "temp_bytes": memory.temp_size_in_bytes,
        "listed_temp_bytes": sum(one.bytes for one in buffers if one.kind == "temporary"),
        "peak_bytes": sum(one.bytes for one in buffers),
        "buffers": [asdict(one) for one in buffers],
    }


def _read(folder: Path) -> list[Buffer]:
    found = sorted(folder.glob("*_after_optimizations-live-range.txt"))
    if not found:
        raise MixflowError("XLA lists no live ranges for this backend: there is no peak to show")
    # Small helper modules may have been compiled first.
    ranges = max(found, key=lambda path: path.stat().st_size)
    stem = str(ranges).removesuffix("-live-range.txt")
    texts = (Path(stem + suffix).read_text() for suffix in ("-buffer-assignment.txt", ".txt"))
    return read_peak(ranges.read_text(), *texts)


def read_peak(ranges: str, assignment: str, module: str) -> list[Buffer]:
    """The buffers alive at the peak, the largest first, out of XLA's texts.

    Arguments:
        ranges: the live ranges.
        assignment: the buffer assignment, with places, kinds and shapes.
        module: the optimised module, with operations and source lines.
    """
    values, origins = _values(assignment), read_origins(module)
    lives = _lives(ranges, values)
    buffers = [_buffer(key, values[key], origins) for key in _alive(lives, values)]
    return sorted(buffers, key=lambda buffer: -buffer.bytes)


def _buffer(key: _Key, value: _Value, origins: Origins) -> Buffer:
    name, part = key[0], key[1].strip("{}")
    origin = origins.of(name, part if part.isdigit() else "")
    operation = origin.operation or name
    return Buffer(value.slot[2], value.kind, value.shape, operation, origin.source)


def _lives(ranges: str, values: dict[_Key, _Value]) -> dict[_Key, tuple[int, int]]:
    """When each value is written, and when it is last read."""
    text = ranges.partition("BufferLiveRange:")[2]
    found = {(m[1], m[2]): (int(m[3]), int(m[4])) for m in _RANGE.finditer(text)}
    return {key: life for key, life in found.items() if key in values}


def _alive(lives: dict[_Key, tuple[int, int]], values: dict[_Key, _Value]) -> list[_Key]:
    """What is alive at the peak. Of values in one place, the one that was written last."""
    peak = _peak(lives, values)
    alive = [key for key, (first, last) in lives.items() if first <= peak <= last]
    latest = sorted(alive, key=lambda key: lives[key][0])
    return list({values[key].slot: key for key in latest}.values())


def _peak(lives: dict[_Key, tuple[int, int]], values: dict[_Key, _Value]) -> int:
    """When temporaries take the most bytes."""
    events: list[tuple[int, int, _Slot]] = []
    for key, (first, last) in lives.items():
        if values[key].kind == "temporary":
            events += [(first, 1, values[key].slot), (last + 1, -1, values[key].slot)]
    users: Counter[_Slot] = Counter()
    total, most, peak = 0, 0, 0
    for time, change, slot in sorted(events):  # at one time, ends before beginnings
        before = users[slot]
        users[slot] += change
        total += slot[2] * (bool(users[slot]) - bool(before))
        if total > most:
            most, peak = total, time
    return peak


def _values(assignment: str) -> dict[_Key, _Value]:
    values: dict[_Key, _Value] = {}
    allocation, kind = 0, ""
    for line in assignment.splitlines():
        if found := _ALLOCATION.match(line):
            allocation = int(found[1])
            kind = next((_KINDS[word] for word in _KINDS if word in found[2]), "temporary")
        elif found := _VALUE.match(line):
            slot = allocation, int(found[4]), int(found[3])
            values[found[1], found[2] or "{}"] = _Value(slot, kind, _LAYOUT.sub("", found[5]))
    return values
