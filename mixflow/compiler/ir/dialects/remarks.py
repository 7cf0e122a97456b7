"""Remarks: what a pass did to an operation, or why it left it alone, in the IR itself."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from xdsl.dialects.builtin import ArrayAttr, StringAttr
from xdsl.ir import Attribute, Operation, ParametrizedAttribute
from xdsl.irdl import irdl_attr_definition, param_def
from xdsl.printer import Printer

from mixflow.compiler.ir.dialects.jaxpr import ReadableOp

REWROTE, DECLINED = "rewrote", "declined"


@irdl_attr_definition
class RemarkAttr(ParametrizedAttribute):
    """One remark: the pass's name, `rewrote` or `declined`, what or why, and where."""

    name = "mixflow.remark"
    by: StringAttr = param_def()
    kind: StringAttr = param_def()
    text: StringAttr = param_def()
    at: StringAttr = param_def()

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(f"{self.by.data} {self.kind.data}: {self.text.data}")


@dataclass(frozen=True)
class Remark:
    """A remark as reports read it."""

    by: str
    kind: str
    text: str
    at: str


def rewrote(op: ReadableOp, by: str, what: str, at: str | None = None) -> None:
    """Record that the pass `by` rewrote the operation, which stands at its own source line."""
    _remark(op, Remark(by, REWROTE, what, at or op.source))


def declined(op: ReadableOp, by: str, why: str) -> None:
    """Record that the pass `by` left the operation alone."""
    _remark(op, Remark(by, DECLINED, why, op.source))


def move_remarks(source: Operation, target: Operation) -> None:
    """Keep an operation's remarks on the one that replaces it."""
    kept = [*_attributes(target), *_attributes(source)]
    if kept:
        target.attributes["remarks"] = ArrayAttr(kept)


def has_remark(op: Operation, by: str) -> bool:
    """Whether the pass `by` has dealt with the operation."""
    return any(
        isinstance(remark, RemarkAttr) and remark.by.data == by for remark in _attributes(op)
    )


def collect_remarks(root: Operation) -> Iterator[Remark]:
    """Every remark below an operation, each once, in program order."""
    found = dict.fromkeys(remark for op in root.walk() for remark in _attributes(op))
    for remark in found:
        if isinstance(remark, RemarkAttr):
            yield Remark(remark.by.data, remark.kind.data, remark.text.data, remark.at.data)


def forget_remarks(root: Operation, by: AbstractSet[str]) -> None:
    """Take away what some passes said, of every operation below one."""
    for op in root.walk():
        remarks = _attributes(op)
        kept = [one for one in remarks if isinstance(one, RemarkAttr) and one.by.data not in by]
        if kept:
            op.attributes["remarks"] = ArrayAttr(kept)
        elif remarks:
            del op.attributes["remarks"]


def _attributes(op: Operation) -> list[Attribute]:
    remarks = op.attributes.get("remarks")
    return list(remarks) if isinstance(remarks, ArrayAttr) else []


def _remark(op: ReadableOp, remark: Remark) -> None:
    fields = map(StringAttr, (remark.by, remark.kind, remark.text, remark.at))
    op.attributes["remarks"] = ArrayAttr([*_attributes(op), RemarkAttr(*fields)])
