"""A region while it is being built: its values, each equal expression once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import Literal

from mixflow.compiler.jaxprs.sizes import count_elements
from mixflow.compiler.memory.dataflow import UNKNOWN, Kind, Value


@dataclass(frozen=True)
class Array:
    """The type of a value that no equation wrote down."""

    shape: tuple[Any, ...]
    dtype: Any


class Scope:
    """Makes a region's values.

    Arguments:
        is_loop: whether the region is a loop's body.
    """

    def __init__(self, *, is_loop: bool = False) -> None:
        self.values: list[Value] = []
        self._is_loop = is_loop
        self._known: dict[Any, Value] = {}
        self._invariant: set[Value] = set()
        """What every iteration computes anew from the same operands."""

    def add(
        self, kind: Kind, reads: tuple[Value, ...], aval: Any, name: str, eqn: Any = None
    ) -> Value:
        """A new value."""
        value = Value(kind, reads, aval, name, eqn)
        self.values.append(value)
        if kind not in (Kind.SOURCE, Kind.PART) and self.is_invariant(reads):
            self._invariant.add(value)
        return value

    def once(
        self, kind: Kind, reads: tuple[Value, ...], aval: Any, name: str, eqn: Any = None
    ) -> Value:
        """The value of this name, operands and type, new only if there is none."""
        key = (kind, name, reads, tuple(aval.shape), aval.dtype)
        if key not in self._known:
            self._known[key] = self.add(kind, reads, aval, name, eqn)
        return self._known[key]

    def is_invariant(self, reads: Sequence[Value]) -> bool:
        """Whether all of these are the same in every iteration of the loop that this is in."""
        return self._is_loop and all(read in self._invariant for read in reads)

    def source(self, aval: Any, *, invariant: bool = True) -> Value:
        """An argument or an array that the program holds, the same for every iteration or not."""
        value = self.add(Kind.SOURCE, (), aval, "source")
        if invariant:
            self._invariant.add(value)
        return value

    def literal(self, atom: Literal) -> Value:
        """A scalar that stands in the program itself."""
        array = np.asarray(atom.val)
        is_known = array.size == 1 and array.dtype.kind in "biuf"
        dtype = getattr(atom.aval, "dtype", None)
        return self.scalar(array.item() if is_known else UNKNOWN, dtype)

    def scalar(self, constant: Any, dtype: Any) -> Value:
        """A constant; each UNKNOWN is another one."""
        key = ("constant", str(constant), dtype)
        if constant is UNKNOWN or key not in self._known:
            self._known[key] = self.source(Array((), dtype))
            self._known[key].constant = constant
        return self._known[key]

    def part(self, call: Value, aval: Any, shares: Value | None = None) -> Value:
        """One result of a call, in a buffer of its own or in that of another value."""
        value = self.add(Kind.PART, (call,), aval, call.name, call.eqn)
        value.shares = shares
        return value

    def spread(self, value: Value, out: Any, eqn: Any) -> Value:
        """A value broadcast to the shape of `out`, as every operand of an operation has to be."""
        if value.size == count_elements(out):
            return value
        while value.kind is Kind.BROADCAST and value.reads[0].size == 1:
            value = value.reads[0]
        wide = Array(tuple(out.shape), value.dtype)
        spread = self.once(Kind.BROADCAST, (value,), wide, "broadcast_in_dim", eqn)
        spread.constant = value.constant
        return spread

    def known(self, key: Any) -> Value | None:
        """What `remember` was given for a key.

        Raises:
            TypeError: the key cannot be hashed.
        """
        return self._known.get(key)

    def remember(self, key: Any, value: Value) -> Value:
        """Let `known` find a value."""
        self._known[key] = value
        return value
