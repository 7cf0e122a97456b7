"""What a loop in the place of equal windows of operations reads and returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax.core
import jax.numpy as jnp
from xdsl.ir import Operation, OpResult, SSAValue

from mixflow.compiler.analysis.repeats import Repeat
from mixflow.compiler.analysis.residuals import total_size
from mixflow.compiler.ir.dialects.attributes import aval_of
from mixflow.compiler.ir.dialects.jaxpr import LiteralOp
from mixflow.passes.rolling.stacks import Stack, part_of


@dataclass(frozen=True)
class Made:
    """A result of each window: the place of its operation, and which of its results it is.

    As an operand it is what the window itself makes.
    """

    place: int
    number: int


@dataclass(frozen=True)
class Same:
    """An operand that is one value for all windows."""

    value: SSAValue


@dataclass(frozen=True)
class Carried:
    """An operand that the window before makes.

    Arguments:
        made: as what.
        first: what the first window reads in its stead; None for zeros, where no window reads it.
    """

    made: Made
    first: SSAValue | None


@dataclass(frozen=True)
class Own:
    """An operand that is another value for each window."""

    stack: Stack


Role = Made | Same | Carried | Own


class Roll:
    """What the loop of a repeat reads and returns.

    Arguments:
        repeat: the windows.

    Attributes:
        windows: the operations of each that are in the loop. What all of them compute of values
            that they all read is computed once, before it, by the first.
        roles: of each operand of each operation of a window.
        same: the loop's constants. Literals are none: the loop's body has its own.
        carried: what it carries, results that are read of the last window alone included.
        own: what it runs over.
        collected: what it stacks up: results that are read behind it of other windows, too.
    """

    def __init__(self, repeat: Repeat) -> None:
        self._alike = _computed_alike(repeat)
        self.windows = [
            [op for op in window if not any(result in self._alike for result in op.results)]
            for window in repeat.inside
        ]
        self._inside = {op for window in self.windows for op in window}
        self._places = [{op: place for place, op in enumerate(one)} for one in self.windows[:2]]
        self.roles = [
            list(map(self._role, zip(*(op.operands for op in alike), strict=True)))
            for alike in zip(*self.windows, strict=True)
        ]
        distinct = dict.fromkeys(role for roles in self.roles for role in roles)
        same = [role for role in distinct if isinstance(role, Same)]
        self.same = [role for role in same if not isinstance(role.value.owner, LiteralOp)]
        self.own = [role for role in distinct if isinstance(role, Own)]
        self.carried = [role for role in distinct if isinstance(role, Carried)]
        self.collected: list[Made] = []
        for made in self._made():
            self._see_to_readers(made)

    @property
    def copied_bytes(self) -> int:
        """Bytes of what is stacked up for the loop and by it."""
        collected = (value for made in self.collected for value in self.results(made))
        return sum(role.stack.copied_bytes for role in self.own) + total_size(collected)

    def results(self, made: Made) -> list[SSAValue]:
        """A result of each window."""
        return [window[made.place].results[made.number] for window in self.windows]

    def is_behind(self, op: Operation) -> bool:
        """Whether an operation that reads a window's result is not in the loop."""
        return op not in self._inside

    def is_read_behind(self, value: SSAValue) -> bool:
        """Whether an operation that is not in the loop reads a value."""
        return any(self.is_behind(use.operation) for use in value.uses)

    def _role(self, operands: Sequence[SSAValue]) -> Role:
        """The role of an operand, by what it is in each window.

        The second window tells: what it reads of the first is carried.
        """
        values = [self._alike.get(value, value) for value in operands]
        second = values[1]
        if isinstance(second, OpResult) and second.op in self._inside:
            before, here = (places.get(second.op) for places in self._places)
            if here is not None:
                return Made(here, second.index)
            assert before is not None
            return Carried(Made(before, second.index), values[0])
        if _are_one(values):
            return Same(values[0])
        return Own(Stack.of(values))

    def _made(self) -> Iterator[Made]:
        for place, op in enumerate(self.windows[0]):
            yield from (Made(place, number) for number in range(len(op.results)))

    def _see_to_readers(self, made: Made) -> None:
        """Return a result that is read behind the loop."""
        values = self.results(made)
        *others, last = map(self.is_read_behind, values)
        if any(others) or (last and not _has_zeros(values[-1])):
            self.collected.append(made)
        elif last and all(role.made != made for role in self.carried):
            self.carried.append(Carried(made, None))


def _computed_alike(repeat: Repeat) -> dict[SSAValue, SSAValue]:
    """What all windows compute of values that they all read: each one, and the first window's.

    What they make of literals alone stays in the loop: an array of zeros would take memory there.
    """
    found: dict[SSAValue, SSAValue] = {}
    for alike in zip(*repeat.inside, strict=True):
        read = ([found.get(value, value) for value in op.operands] for op in alike)
        if all(map(_are_one, zip(*read, strict=True))) and not all(
            map(_is_literal, alike[0].operands)
        ):
            for op in alike:
                found.update(zip(op.results, alike[0].results, strict=True))
    return found


def _are_one(values: Sequence[SSAValue]) -> bool:
    return all(_is_one(values[0], value) for value in values)


def _is_one(value: SSAValue, other: SSAValue) -> bool:
    """Whether two values are the same one, equal literals, or the same part of an array."""
    if value is other:
        return True
    if isinstance(value.owner, LiteralOp) and isinstance(other.owner, LiteralOp):
        return value.owner.value == other.owner.value
    part = part_of(value)
    return part is not None and part == part_of(other)


def _is_literal(value: SSAValue) -> bool:
    return isinstance(value.owner, LiteralOp)


def _has_zeros(value: SSAValue) -> bool:
    """Whether zeros of a value's type can be made: not of a key, say."""
    aval = aval_of(value)
    is_number = jnp.issubdtype(aval.dtype, jnp.number) or aval.dtype == bool
    return is_number and aval == jax.core.ShapedArray(aval.shape, aval.dtype)
