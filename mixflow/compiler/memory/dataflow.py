"""A program as a graph of values, one flat region for each loop body and branch.

This is what XLA's passes work on before fusion: calls are inlined, dead code is gone, equal
expressions are one value, and what JAX leaves implicit (broadcasts, transposed operands of
products, the slices and buffers of a scan) is explicit. `lowering` builds it, `fusion` decides
which values reach memory, `liveness` sweeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from mixflow.compiler.jaxprs.sizes import array_bytes, count_elements, dims_of


class Kind(Enum):
    """How a value comes about, as far as fusion and memory care."""

    SOURCE = auto()  # an argument or a constant: somebody else's memory
    CHEAP = auto()  # element-wise, computed again wherever it is read
    COSTLY = auto()  # element-wise, computed once
    MOVE = auto()  # elements in another order, or some of them
    BROADCAST = auto()  # each element many times
    REDUCE = auto()
    UPDATE = auto()  # its first operand, changed in place if nobody needs that any more
    DOT = auto()
    LIBRARY = auto()  # several values that one library call computes, known by the last
    CALL = auto()  # all else: in memory, and so is what it reads
    PART = auto()  # one result of a call
    BARRIER = auto()  # waits for all that it reads


UNKNOWN = "?"
"""The constant whose value nobody worked out."""


class Value:
    """An array in the graph. Two are equal when they are one object.

    Arguments:
        kind: how it comes about.
        reads: what it is computed from.
        shape, dtype: of the array; shape None where there is no array.
        name: the primitive, or the part that the value plays in a loop.
        eqn: the equation that it comes from, if any.
    """

    __slots__ = (
        *("kind", "reads", "shape", "dtype", "name", "eqn", "size", "bytes", "rank"),
        *("shares", "constant", "nested", "aligned"),
    )

    def __init__(
        self, kind: Kind, reads: tuple[Value, ...], aval: Any, name: str, eqn: Any = None
    ) -> None:
        self.kind = kind
        self.reads = reads
        self.name = name
        self.eqn = eqn
        self.dtype = getattr(aval, "dtype", None)
        self.shape: tuple[Any, ...] = tuple(getattr(aval, "shape", ()))
        self.size = count_elements(aval)
        self.bytes = array_bytes(aval)
        self.rank = sum(dim > 1 for dim in dims_of(aval))
        """Dimensions that are more than one long."""
        self.shares: Value | None = None
        """The value whose buffer this one is, whatever the schedule."""
        self.constant: Any = None
        """The one scalar in it, where that is known at compile time."""
        self.nested: Nested | None = None
        self.aligned: frozenset[Value] | None = None
        """For a library call, the operands that it needs one element of for each of its own."""


@dataclass(frozen=True)
class Nested:
    """What runs inside a call.

    Arguments:
        regions: a loop's body, or all branches, of which one runs.
        trips: how often; None where nobody knows.
    """

    regions: tuple[Graph, ...]
    trips: int | None


@dataclass(eq=False)
class Graph:
    """A straight-line piece of program.

    Arguments:
        values: all that is live, each after what it reads.
        outputs: what it hands to its caller, in the caller's memory.
        carries: for a loop's body, each carried value as it comes in and as it goes out.
    """

    values: list[Value]
    outputs: list[Value]
    carries: list[tuple[Value, Value]]

    @property
    def results(self) -> list[Value]:
        """All that must be in memory in the end."""
        return [*self.outputs, *(new for _, new in self.carries)]


def live_values(values: list[Value], roots: list[Value]) -> list[Value]:
    """The values that the roots need, in their order."""
    seen: set[Value] = set()
    stack = list(roots)
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        stack.extend(value.reads)
        if value.shares is not None:
            stack.append(value.shares)
    return [value for value in values if value in seen]
