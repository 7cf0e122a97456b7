"""A loop in the place of equal windows of operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core.primitives import scan_p
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.rewriter import InsertPoint

from mixflow.compiler.ir.building import build_before
from mixflow.compiler.ir.dialects.attributes import Equation, EquationAttr, aval_of
from mixflow.compiler.ir.dialects.jaxpr import EquationOp, LiteralOp, ScanOp, YieldOp
from mixflow.passes.inner_loops.nested_scans import stacked_type
from mixflow.passes.rolling.roll import Carried, Made, Role, Roll, Same


def roll_up(roll: Roll) -> ScanOp:
    """Put a loop in the place of the windows.

    Arguments:
        roll: what it reads and returns. Its windows are gone afterwards.
    """
    behind = roll.windows[-1][-1].next_op
    assert behind is not None
    loop = _loop(roll, _operands(roll, behind))
    assert behind.parent is not None
    behind.parent.insert_op_before(loop, behind)
    _hand_out(roll, loop, behind)
    for op in (op for window in reversed(roll.windows) for op in reversed(window)):
        op.detach()
        op.erase()
    return loop


def _model(roll: Roll) -> EquationOp:
    """An operation whose source line and context new ones take."""
    ops = (inner for op in roll.windows[0] for inner in op.walk())
    return next(op for op in ops if isinstance(op, EquationOp))


def _operands(roll: Roll, behind: Operation) -> list[SSAValue]:
    """The loop's operands: constants, what is carried at first, and what it runs over."""
    build = partial(build_before, _model(roll), at=InsertPoint.before(behind))
    operands = [role.value for role in roll.same]
    for role in roll.carried:
        operands += [role.first] if role.first else build(partial(_zeros, roll, role), [])
    for role in roll.own:
        operands += build(role.stack.built, role.stack.operands)
    return operands


def _zeros(roll: Roll, role: Carried) -> Any:
    aval = aval_of(roll.results(role.made)[-1])
    return jnp.zeros(aval.shape, aval.dtype)


def _loop(roll: Roll, operands: Sequence[SSAValue]) -> ScanOp:
    body = _body(roll, operands)
    carry = [value.type for value in operands[len(roll.same) :][: len(roll.carried)]]
    count, ys = len(roll.windows), [roll.results(made)[0] for made in roll.collected]
    info = _scan_of_scalars(count, len(roll.same), len(carry), len(roll.own), len(ys))
    model = _model(roll).eqn
    info = replace(info, source_info=model.source_info, ctx=model.ctx)
    return ScanOp.create(
        operands=operands,
        result_types=[*carry, *(stacked_type(y, (count,)) for y in ys)],
        properties={"equation": EquationAttr(info)},
        regions=[body],
    )


def _body(roll: Roll, operands: Sequence[SSAValue]) -> Region:
    """The first window, reading the loop's variables."""
    stop = len(roll.same) + len(roll.carried)
    types = [value.type for value in operands[:stop]]
    types += [role.stack.values[0].type for role in roll.own]
    block = Block(arg_types=types)
    known: dict[Role, SSAValue] = dict(
        zip([*roll.same, *roll.carried, *roll.own], block.args, strict=True)
    )
    for place, (op, roles) in enumerate(zip(roll.windows[0], roll.roles, strict=True)):
        for role in roles:
            if isinstance(role, Same) and isinstance(role.value.owner, LiteralOp):
                known[role] = _added(block, role.value.owner.clone()).results[0]
        copy = _added(block, op.clone())
        copy.operands = [known[role] for role in roles]
        known.update((Made(place, number), result) for number, result in enumerate(copy.results))
    yielded = [*(role.made for role in roll.carried), *roll.collected]
    _added(block, YieldOp.create(operands=[known[made] for made in yielded]))
    return Region(block)


def _added(block: Block, op: Operation) -> Operation:
    block.add_op(op)
    return op


def _hand_out(roll: Roll, loop: ScanOp, behind: Operation) -> None:
    """Give the loop's results to what reads the windows'."""
    for role, value in zip(roll.carried, loop.results, strict=False):
        _replace_behind(roll, roll.results(role.made)[-1], value)
    for made, stacked in zip(roll.collected, loop.results[len(roll.carried) :], strict=True):
        for number, value in enumerate(roll.results(made)):
            if roll.is_read_behind(value):
                cut = partial(jax.lax.index_in_dim, index=number, keepdims=False)
                point = InsertPoint.before(behind)
                (part,) = build_before(_model(roll), cut, [stacked], at=point)
                _replace_behind(roll, value, part)


def _replace_behind(roll: Roll, value: SSAValue, new: SSAValue) -> None:
    value.replace_uses_with_if(new, lambda use: roll.is_behind(use.operation))


@cache
def _scan_of_scalars(steps: int, consts: int, carry: int, xs: int, ys: int) -> Equation:
    """The equation of a loop, of which operands, results and body are to be replaced."""

    def loop(fixed: list[Any], state: list[Any], slices: list[Any]) -> Any:
        def step(state: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            total = sum([*fixed, *slices], jnp.zeros(()))
            return [one + total for one in state], [total * number for number in range(2, ys + 2)]

        return jax.lax.scan(step, state, slices, steps)

    scalars, arrays = jnp.zeros(()), jnp.zeros(steps)
    closed = jax.make_jaxpr(loop)([scalars] * consts, [scalars] * carry, [arrays] * xs)
    return next(Equation.of(eqn) for eqn in closed.eqns if eqn.primitive is scan_p)
