"""Activity: which derivatives are themselves differentiated.

A value is active when it depends on something that an enclosing derivative (or, for a function
marked `differentiated`, somebody outside) differentiates with respect to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, Operation, Region, SSAValue

from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.ir.dialects import mixflow as mf
from mixflow.compiler.ir.dialects.attributes import aval_of
from mixflow.compiler.jaxprs.values import is_inexact
from mixflow.compiler.primitives import row_by_name

Flags = Sequence[bool]


@dataclass
class Activity:
    """The operations that an enclosing differentiation reaches.

    Arguments:
        pullbacks: `mixflow.vjp` operations: reverse over reverse.
        loops: scans that a cotangent comes back to.
        values: the active values of every region, block arguments included, that a cotangent
            comes back to.
    """

    pullbacks: set[mf.VjpOp] = field(default_factory=set)
    loops: set[jx.ScanOp] = field(default_factory=set)
    values: set[SSAValue] = field(default_factory=set)


def find_activity(function: FuncOp) -> Activity:
    """Analyse a function and everything nested in it."""
    walker = _Walker(Activity())
    outside = "differentiated" in function.attributes
    walker.region(function.body, [outside] * len(function.body.block.args))
    found = walker.found
    found.loops = {op for op in found.loops if _is_reached(op, found.values)}
    return found


def active_in_first_step(op: jx.ScanOp, active: set[SSAValue]) -> set[SSAValue]:
    """The active values of a loop's body in its first step.

    Arguments:
        op: a loop.
        active: the values of the whole program.
    """
    walker = _Walker(Activity())
    walker.region(op.regions[0], [operand in active for operand in op.operands])
    return walker.found.values


@dataclass
class _Walker:
    found: Activity

    def region(self, region: Region, args: Flags) -> list[bool]:
        """Which yielded values are active, given which arguments are."""
        block = region.block
        pairs = zip(block.args, args, strict=True)
        active: set[SSAValue] = {arg for arg, flag in pairs if flag and _has_derivative(arg)}
        last = block.last_op
        for op in block.ops:
            if op is not last:
                flags = self.results(op, [operand in active for operand in op.operands])
                pairs = zip(op.results, flags, strict=True)
                active.update(result for result, flag in pairs if flag and _has_derivative(result))
        assert last is not None
        self.found.values |= _useful(block, active)
        return [operand in active for operand in last.operands]

    def results(self, op: Operation, args: Flags) -> Flags:
        """Which results of an operation are active, given which operands are."""
        match op:
            case jx.ScanOp():
                return self._scan(op, args)
            case jx.WhileOp():
                return self._while(op, args)
            case jx.CondOp():
                branches = [self.region(branch, args[1:]) for branch in op.regions]
                return [any(flags) for flags in zip(*branches, strict=True)]
            case jx.JitOp() | jx.CheckpointOp() | mf.PrimalOp():
                return self.region(op.regions[0], args)
            case mf.VjpOp():
                return self._vjp(op, args)
            case _:
                is_flat = isinstance(op, jx.LeafOp) and row_by_name(op.eqn).flat
                return [any(args) and not is_flat] * len(op.results)

    def _vjp(self, op: mf.VjpOp, args: Flags) -> Flags:
        if any(args):
            self.found.pullbacks.add(op)
        inputs = args[: op.point_stop]
        differentiated = [
            position >= op.point_start or flag for position, flag in enumerate(inputs)
        ]
        self.region(op.body, differentiated)
        return [any(args)] * len(op.results)

    def _scan(self, op: jx.ScanOp, args: Flags) -> Flags:
        start, stop = op.num_consts, op.num_consts + op.num_carry
        carry = list(args[start:stop])
        while True:
            out = self.region(op.regions[0], [*args[:start], *carry, *args[stop:]])
            grown = [old or new for old, new in zip(carry, out, strict=False)]
            if grown == carry:
                break
            carry = grown
        if any(args):
            self.found.loops.add(op)
        return [*carry, *out[op.num_carry :]]

    def _while(self, op: jx.WhileOp, args: Flags) -> Flags:
        start = op.params["cond_nconsts"]
        stop = start + op.params["body_nconsts"]
        carry = list(args[stop:])
        while True:
            out = self.region(op.regions[1], [*args[start:stop], *carry])
            grown = [old or new for old, new in zip(carry, out, strict=True)]
            if grown == carry:
                return carry
            carry = grown


def _useful(block: Block, active: set[SSAValue]) -> set[SSAValue]:
    """The active values that something active is computed from, or that are given back."""
    useful: set[SSAValue] = set()
    for op in reversed(list(block.ops)):
        if isinstance(op, jx.YieldOp) or any(result in useful for result in op.results):
            useful.update(operand for operand in op.operands if operand in active)
    return useful


def _is_reached(op: Operation, useful: set[SSAValue]) -> bool:
    """Whether a cotangent comes back to an operation, and to all that it stands in.

    As far as the next derivative around it: that differentiates its body, whatever comes of it.
    """
    if not any(result in useful for result in op.results):
        return False
    around = op.parent_op()
    if around is None or isinstance(around, (FuncOp, mf.VjpOp)):
        return True
    return _is_reached(around, useful)


def _has_derivative(value: SSAValue) -> bool:
    aval = aval_of(value)
    return hasattr(aval, "dtype") and is_inexact(aval)
