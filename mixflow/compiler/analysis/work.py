"""What running one operation of the IR costs, for weighing what to rerun."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from xdsl.ir import Operation, SSAValue

from mixflow.compiler.analysis.costs import equation_flops
from mixflow.compiler.analysis.residuals import total_size
from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.ir.dialects.attributes import aval_of
from mixflow.compiler.jaxprs.sizes import number_of

FLOPS_PER_BYTE = 10
"""How many floating-point operations take as long as moving a byte: 5 on CPUs, 30 on GPUs."""


def work_of(op: Operation) -> float:
    """The work of running an operation once, in floating-point operations or their like."""
    if isinstance(op, jx.LeafOp):
        moved = total_size(op.operands) + total_size(op.results)
        return _flops(op) + FLOPS_PER_BYTE * moved
    inside = sum(work_of(inner) for region in op.regions for inner in region.block.ops)
    return inside * (number_of(op.length) if isinstance(op, jx.ScanOp) else 1)


def _flops(op: jx.LeafOp) -> float:
    eqn = SimpleNamespace(
        primitive=op.eqn.primitive,
        params=op.params,
        invars=list(map(_atom, op.operands)),
        outvars=list(map(_atom, op.results)),
    )
    return equation_flops(eqn)


@dataclass(frozen=True, eq=False)
class _Atom:
    """What an equation reads or gives; two are never the same."""

    aval: Any


def _atom(value: SSAValue) -> _Atom:
    return _Atom(aval_of(value))
