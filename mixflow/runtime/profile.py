"""What XLA says is alive when a program's memory is at its peak, by source line."""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixflow.errors import MixflowError
from mixflow.runtime.profile_hlo import Origins, read_origins

_ALIVE = re.compile(r"    (.+?)(\{[\d,]*\}): (\d+) bytes \(cumulative")
_ALLOCATION = re.compile(r"allocation \d+: size \d+, (.*):$")
_VALUE = re.compile(r" value: <\d+ (\S+?)(\{[\d,]*\})?(?: \(phi\))? @\d+> \(size=.*?\): (.*)")
_LAYOUT = re.compile(r"(?<=\])\{[^}]*\}")
# In the order of trying: the words of XLA's text for an allocation, and what they mean.
_KINDS = {
    "parameter": "argument",
    "constant": "constant",
    "live-out": "result",
    "temp": "temporary",
}


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


def peak_of(lowered: Any) -> dict[str, Any]:
    """Compile a program, and list what is alive at its peak.

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
        ranges: the live ranges; they end with the list at the peak.
        assignment: the buffer assignment, with kinds and shapes.
        module: the optimised module, with operations and source lines.
    """
    alive = _ALIVE.findall(ranges.partition("(peak):")[2])
    values, origins = _values(assignment), read_origins(module)
    buffers = [
        _buffer(name, int(size), *values.get((name, index), ("temporary", "?")), origins)
        for name, index, size in alive
    ]
    return sorted(buffers, key=lambda buffer: -buffer.bytes)


def _buffer(name: str, size: int, kind: str, shape: str, origins: Origins) -> Buffer:
    origin = origins.of(name)
    return Buffer(size, kind, shape, origin.operation or name, origin.source)


def _values(assignment: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Kind and shape of each value, by instruction and index into its tuple."""
    values: dict[tuple[str, str], tuple[str, str]] = {}
    kind = ""
    for line in assignment.splitlines():
        if found := _ALLOCATION.match(line):
            kind = next((_KINDS[word] for word in _KINDS if word in found[1]), "temporary")
        elif found := _VALUE.match(line):
            values[found[1], found[2] or "{}"] = kind, _LAYOUT.sub("", found[3])
    return values
