"""Values of which each step of a loop has its own: stacked up, or read from where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from xdsl.ir import OpResult, SSAValue

from mixflow.compiler.analysis.residuals import size_of
from mixflow.compiler.ir.dialects.attributes import aval_of
from mixflow.compiler.ir.dialects.jaxpr import LeafOp


@dataclass(frozen=True)
class Stack:
    """One value for each step.

    Arguments:
        values: in the order of the steps, all of one type.
        first: where the first lies, if they are consecutive parts of an array.
    """

    values: tuple[SSAValue, ...]
    first: Part | None = None

    @staticmethod
    def of(values: Sequence[SSAValue]) -> Stack:
        """The stack of some values of one type."""
        parts = list(map(part_of, values))
        first = parts[0]
        if first is None or any(part != first.after(by) for by, part in enumerate(parts)):
            return Stack(tuple(values))
        return Stack(tuple(values), first)

    @property
    def copied_bytes(self) -> int:
        """Bytes that are copied for it."""
        return 0 if self.first else sum(map(size_of, self.values))

    @property
    def operands(self) -> list[SSAValue]:
        """What it is built of."""
        return [self.first.base] if self.first else list(self.values)

    def built(self, *operands: Any) -> Any:
        """The stacked array, of its operands."""
        if self.first is None:
            return jnp.stack(operands)
        return self.first.stacked(operands[0], len(self.values))


@dataclass(frozen=True)
class Part:
    """Some rows of an array: `base[start : start + rows]`, and of other dimensions a part as well.

    Arguments:
        base: the array.
        start: the first row.
        rows: how many.
        others: start and limit in each other dimension.
        squeezed: the dimensions that are left out. They are of size 1.
    """

    base: SSAValue
    start: int
    rows: int
    others: tuple[tuple[int, int], ...]
    squeezed: tuple[int, ...] = ()

    def after(self, count: int) -> Part:
        """The part that lies so many parts of this size behind it."""
        return replace(self, start=self.start + count * self.rows)

    def stacked(self, base: Any, count: int) -> Any:
        """So many parts, each behind the one before it."""
        ranges = [(self.start, self.after(count).start), *self.others]
        parts = base
        if ranges != [(0, size) for size in base.shape]:
            parts = jax.lax.slice(base, *zip(*ranges, strict=True))
        if self.rows == 1 and 0 in self.squeezed:
            return jax.lax.squeeze(parts, [one for one in self.squeezed if one])
        rows = jax.lax.reshape(parts, (count, self.rows, *parts.shape[1:]))
        return jax.lax.squeeze(rows, [1 + dimension for dimension in self.squeezed])


def part_of(value: SSAValue) -> Part | None:
    """Where a value lies in an array; None where it is no such part, or another's."""
    if not isinstance(value, OpResult) or not isinstance(value.op, LeafOp):
        return None
    base, params = value.op.operands[0] if value.op.operands else value, value.op.params
    whole = [(0, size) for size in getattr(aval_of(base), "shape", ())]
    match value.op.eqn.primitive.name:
        case "squeeze":
            part = part_of(base)
            if part is not None and not part.squeezed:
                return replace(part, squeezed=params["dimensions"])
        case "slice" if whole and not any(one != 1 for one in params["strides"] or ()):
            (start, limit), *others = zip(
                params["start_indices"], params["limit_indices"], strict=True
            )
            return Part(base, start, limit - start, tuple(others))
        case "unstack" if params["axis"] == 0:
            return Part(base, value.index, 1, tuple(whole[1:]), (0,))
        case "split" if params["axis"] == 0:
            sizes = list(map(int, params["sizes"]))
            start = sum(sizes[: value.index])
            return Part(base, start, sizes[value.index], tuple(whole[1:]))
        case _:
            pass
    return None
