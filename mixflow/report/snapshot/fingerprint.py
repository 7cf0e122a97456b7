"""Fingerprints: hashes that are equal where two programs, or two regions of them, are the same.

A Merkle hash over operations, parameters, numbered operands, types and regions. Operands are
numbered within their region, so x - y is not y - x, and x * x is not x * y. Left out are names of
variables, source lines, remarks, and whatever differs between two processes: addresses, and the
order of sets.
"""

from __future__ import annotations

from collections.abc import Callable

from xdsl.ir import Attribute, Operation, Region, SSAValue

from mixflow.compiler.derivative.vjp_primitive import SYMBOLIC
from mixflow.compiler.ir.dialects.attributes import AvalType, EquationAttr, FunctionAttr, ValueAttr
from mixflow.compiler.ir.importer import REGIONS
from mixflow.report.snapshot.canonical import (
    aval_text,
    canonical,
    digest,
    equation_text,
    function_text,
)

_REMARKS = "remarks"


class Fingerprints:
    """Hashes the regions of one module, each once."""

    def __init__(self) -> None:
        self._whole: dict[Region, str] = {}

    def whole(self, region: Region) -> str:
        """The hash of a region with all that is nested in it."""
        if region not in self._whole:
            self._whole[region] = _region(region, self.whole)
        return self._whole[region]

    def own(self, region: Region) -> str:
        """The hash of a region's own operations, whatever is nested in them."""
        return _region(region, lambda _: "")


def _region(region: Region, nested: Callable[[Region], str]) -> str:
    numbers: dict[SSAValue, int] = {}

    def born(values: tuple[SSAValue, ...]) -> str:
        for value in values:
            numbers[value] = len(numbers)
        return canonical([_attribute(value.type) for value in values])

    lines = [born(tuple(region.block.args))]
    for op in region.block.ops:
        operands = canonical([numbers[operand] for operand in op.operands])
        lines += [op.name, _attributes(op), operands, born(tuple(op.results))]
        lines += map(nested, op.regions)
    return digest(lines)


def _attributes(op: Operation) -> str:
    """What an operation is apart from operands; remarks, which hold source lines, are left out."""
    named = {**op.properties, **op.attributes}
    return canonical({name: _attribute(one) for name, one in named.items() if name != _REMARKS})


def _attribute(attribute: Attribute) -> str:
    match attribute:
        case AvalType():
            return aval_text(attribute.data)
        case EquationAttr():
            return equation_text(attribute.data, without=_held(attribute))
        case FunctionAttr():
            return function_text(attribute.data)
        case ValueAttr():
            return canonical(attribute.data)
        case _:
            return str(attribute)


def _held(attribute: EquationAttr) -> tuple[str, ...]:
    """The parameters that an operation's regions and other properties stand for."""
    primitive = attribute.data.primitive
    return ("function",) if primitive in SYMBOLIC else REGIONS.get(primitive, (None, ()))[1]
