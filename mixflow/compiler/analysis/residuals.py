"""What the derivative of each operation reads: the residuals of a reverse pass.

The derivative of an operation that is linear in a value does not read that value: θ - 0.1·g pulls
cotangents back without knowing g. It reads the other factor of a product, where that factor's
partner is differentiated.

Counted on the program before it is differentiated, so that a pass can weigh cuts without
differentiating every candidate. XLA's fusions make the true figures smaller; the choice between
plans is made on the differentiated program (`liveness`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from xdsl.ir import Block, Operation, SSAValue, Use

from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.ir.dialects import mixflow as mf
from mixflow.compiler.ir.dialects.attributes import aval_of
from mixflow.compiler.jaxprs.sizes import array_bytes, count_elements, number_of
from mixflow.compiler.jaxprs.values import is_inexact
from mixflow.compiler.primitives import CUSTOM_RULES, Row, row_by_name


@dataclass(frozen=True)
class Residuals:
    """Arguments:
    values: those of the enclosing block that are read.
    inside: bytes of what lies in the operation's own regions.
    """

    values: set[SSAValue] = field(default_factory=set)
    inside: int = 0


def size_of(value: SSAValue) -> int:
    """Bytes of a value; 0 for what takes no memory of its own."""
    return array_bytes(aval_of(value))


def total_size(values: Iterable[SSAValue]) -> int:
    """Bytes of all the values together."""
    return sum(map(size_of, values))


def residuals_of(op: Operation, active: AbstractSet[SSAValue]) -> Residuals:
    """What reverse mode reads of an operation's operands, results and insides.

    Arguments:
        op: an operation.
        active: the values that are differentiated, those inside its regions included.
    """
    if not any(result in active for result in op.results):
        return Residuals()
    match op:
        case jx.ScanOp():
            body = residual_bytes(op.regions[0].block, active)
            carried = total_size(op.operands[op.num_consts :][: op.num_carry])
            return Residuals(set(op.operands), number_of(op.length) * (body + carried))
        case jx.CondOp():
            branches = [residual_bytes(region.block, active) for region in op.regions]
            return Residuals(set(op.operands), max(branches))
        case jx.JitOp():
            return _of_jit(op, active)
        case jx.LeafOp():
            read = _of_leaf(op, active)
            return Residuals(read, _broadcast(op, read))
        case _:
            # A checkpoint, and a derivative with a rule of its own, save what they are given.
            return Residuals(set(op.operands))


def _of_jit(op: jx.JitOp, active: AbstractSet[SSAValue]) -> Residuals:
    block = op.regions[0].block
    values, inside = _of_operations(block.ops, active)
    read = {operand for operand, arg in zip(op.operands, block.args, strict=True) if arg in values}
    return Residuals(read, total_size(values.difference(block.args)) + inside)


def residual_bytes(
    block: Block, active: AbstractSet[SSAValue], of: Iterable[Operation] | None = None
) -> int:
    """Bytes that a block saves for its backward pass, its own arguments not counted.

    Arguments:
        block: the block.
        active: the values that are differentiated, those inside its operations included.
        of: the operations in it that count; by default all.
    """
    values, inside = _of_operations(block.ops if of is None else of, active)
    return total_size(values.difference(block.args)) + inside


def _of_operations(
    ops: Iterable[Operation], active: AbstractSet[SSAValue]
) -> tuple[set[SSAValue], int]:
    found = [residuals_of(op, active) for op in ops]
    values = set[SSAValue]().union(*(one.values for one in found))
    return values, sum(one.inside for one in found)


def _broadcast(op: jx.LeafOp, read: set[SSAValue]) -> int:
    """Bytes that operands take beyond their own, which XLA broadcasts in memory to be read."""
    if not row_by_name(op.eqn).is_elementwise:
        return 0
    out = size_of(op.results[0])
    return sum(
        out - size_of(value)
        for value in read
        if count_elements(aval_of(value)) > 1 and size_of(value) < out
    )


def _of_leaf(op: jx.LeafOp, active: AbstractSet[SSAValue]) -> set[SSAValue]:
    name, row = op.eqn.primitive.name, row_by_name(op.eqn)
    if row.flat or _is_linear(op, row):
        return {operand for operand in op.operands if not is_inexact(aval_of(operand))}
    if row.reads_result:
        return set(op.results)
    if row.linear == ((0,), (1,)):
        left, right = op.operands
        return {one for one, other in ((left, right), (right, left)) if other in active}
    if name == "triangular_solve":
        # For x = a⁻¹ b, ẋ = a⁻¹ (ḃ - ȧ x).
        matrix, _ = op.operands
        return {matrix, *(op.results if matrix in active else ())}
    if name == "div":
        above, below = op.operands
        return {below, *({above} if below in active else ())}
    # Nobody knows what a custom rule reads, or what its own derivative does: taken for both.
    return {*op.operands, *(op.results if name in CUSTOM_RULES else ())}


def _is_linear(op: jx.LeafOp, row: Row) -> bool:
    """Whether it is linear in all floating-point operands together: only indices are read."""
    inexact = {position for position, one in enumerate(op.operands) if is_inexact(aval_of(one))}
    return row.is_linear_in(inexact, len(op.operands))


def is_read_backward(value: SSAValue, active: AbstractSet[SSAValue]) -> bool:
    """Whether the derivative of a step reads a value of it, or anything that is computed from it.

    What the step gives back does not count: a loop stores that, or nobody asks for it.

    Arguments:
        value: in the step's block, or in a `jit` there.
        active: the values that the differentiation reaches, from `find_activity`.
    """
    seen, pending = {value}, [value]
    while pending:
        for use in pending.pop().uses:
            if _reads(use, active):
                return True
            found = [other for other in _flows_to(use) if other not in seen]
            seen.update(found)
            pending.extend(found)
    return False


def _flows_to(use: Use) -> Iterator[SSAValue]:
    """The values that are computed from a used one in the same step."""
    op = use.operation
    if isinstance(op, jx.JitOp):
        yield op.regions[0].block.args[use.index]
    elif not isinstance(op, jx.YieldOp):
        yield from op.results
    elif isinstance(parent := op.parent_op(), jx.JitOp):
        yield parent.results[use.index]


def _reads(use: Use, active: AbstractSet[SSAValue]) -> bool:
    """Whether the derivative of an operation reads one of its operands, or its results."""
    op = use.operation
    if isinstance(op, (jx.YieldOp, jx.JitOp, mf.NameOp)):
        return False
    read = residuals_of(op, active).values
    return op.operands[use.index] in read or not read.isdisjoint(op.results)
