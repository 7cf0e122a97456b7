"""What a snapshot says of one program: figures, operations, regions, and memory over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from jax.extend.core import ClosedJaxpr
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, Region

from mixflow.compiler.analysis.costs import program_cost
from mixflow.compiler.ir.dialects.jaxpr import LeafOp, ReadableOp, YieldOp
from mixflow.compiler.ir.places import UNKNOWN, place
from mixflow.compiler.memory.liveness import peak_memory
from mixflow.compiler.memory.timeline import memory_timeline
from mixflow.report.snapshot.canonical import digest, jaxpr_digest
from mixflow.report.snapshot.fingerprint import Fingerprints
from mixflow.runtime.measure import Measurement

_MOST_ALIVE = 20


def describe_program(
    closed: ClosedJaxpr, module: ModuleOp | None, measured: Measurement
) -> dict[str, Any]:
    """One program as JSON: the same for the same program in every process.

    Arguments:
        closed: as JAX lowers it.
        module: its IR; None where the IR could not hold it.
        measured: XLA's figures, of which the times are left out.
    """
    return {
        "temp_bytes": measured.temp_bytes,
        "total_bytes": measured.total_bytes,
        "flops": measured.flops,
        "bytes_moved": program_cost(closed).bytes,
        "eqns": measured.eqns,
        **_structure(closed, module),
        **_memory(closed),
    }


# --- memory ---------------------------------------------------------------------------------------


def _memory(closed: ClosedJaxpr) -> dict[str, Any]:
    try:
        peak, timeline = peak_memory(closed), memory_timeline(closed)
    except NameError:  # a mesh axis that exists only inside of its shard_map
        return {"peak": None, "timeline": None}
    buffers = [replace(one, at=place(one.at)) for one in peak.alive]
    buffers.sort(key=lambda one: (-one.bytes, one.at, one.aval, one.primitive))
    alive = [asdict(one) for one in buffers[:_MOST_ALIVE]]
    points = [[point.step, point.bytes, place(point.at)] for point in timeline.points]
    return {
        "peak": {"bytes": peak.bytes, "buffers": len(buffers), "alive": alive},
        "timeline": {"steps": timeline.steps, "points": points},
    }


# --- structure ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A region, with where it stands: its path from the function on, and its source line.

    What a pass has made has no line of its own: it has that of its first operation.
    """

    region: Region
    operation: str
    path: str
    at: str


def _structure(closed: ClosedJaxpr, module: ModuleOp | None) -> dict[str, Any]:
    if module is None:
        operations = {"by_kind": {}, "by_line": {}, "by_region": {}}
        return {"fingerprint": jaxpr_digest(closed), "operations": operations, "regions": []}
    fingerprints = Fingerprints()
    kinds, lines = Counter[str](), Counter[str]()
    regions: list[dict[str, Any]] = []
    for found in _regions(module):
        counts = Counter(_kind(op) for op in found.region.block.ops if _counts(op))
        kinds += counts
        lines.update(_line(op) for op in found.region.block.ops if _counts(op))
        regions.append(
            {
                "path": found.path,
                "operation": found.operation,
                "at": found.at,
                "fingerprint": fingerprints.whole(found.region),
                "own_fingerprint": fingerprints.own(found.region),
                "operations": dict(counts),
            }
        )
    by_region = {one["path"]: sum(one["operations"].values()) for one in regions}
    return {
        "fingerprint": digest([fingerprints.whole(module.body), jaxpr_digest(closed)]),
        "operations": {"by_kind": kinds, "by_line": lines, "by_region": by_region},
        "regions": regions,
    }


def _regions(module: ModuleOp) -> Iterator[_Found]:
    for op in module.ops:
        if isinstance(op, FuncOp):
            name = op.sym_name.data
            yield from _below(_Found(op.body, "func", name, _first_line(op.body)))


def _below(found: _Found) -> Iterator[_Found]:
    """A region and those nested in it, in program order."""
    yield found
    seen = Counter[str]()
    for op in found.region.block.ops:
        if not op.regions:
            continue
        kind = _kind(op)
        path = f"{found.path}/{kind}[{seen[kind]}]"
        seen[kind] += 1
        for number, region in enumerate(op.regions):
            own = path if len(op.regions) == 1 else f"{path}.{number}"
            lines = (_line(op), _first_line(region), found.at)
            at = next((line for line in lines if line != UNKNOWN), UNKNOWN)
            yield from _below(_Found(region, kind, own, at))


def _counts(op: Operation) -> bool:
    """Whether an operation counts: what ends a region computes nothing."""
    return not isinstance(op, YieldOp)


def _kind(op: Operation) -> str:
    """The primitive's name, or that of the operation that stands for it."""
    return op.eqn.primitive.name if isinstance(op, LeafOp) else op.name.rpartition(".")[2]


def _first_line(region: Region) -> str:
    """The source line of the first operation that has one."""
    return next((line for line in map(_line, region.block.ops) if line != UNKNOWN), UNKNOWN)


def _line(op: Operation) -> str:
    return place(op.source) if isinstance(op, ReadableOp) else UNKNOWN
