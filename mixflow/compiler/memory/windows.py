"""Scatters into windows, the pullback of max-pooling: what XLA spells them out as.

Source: XLA's SelectAndScatterExpander, and JAX's own padding of the operand on a CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixflow.compiler.memory.dataflow import Kind, Value
from mixflow.compiler.memory.scope import Array, Scope

_PLACE = np.dtype(np.int32)


def select_and_scatter(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    """Each source element, added where its window's largest element stands.

    A reduction over windows finds the places. It reads the place of every element, one array for
    each dimension, and these wait in memory from the start, each scatter's own.

    Arguments:
        eqn: a `select_and_scatter_add`.
        args: source and operand.
    """
    source, operand = args  # which may be those that a reshape was given
    windows, given = (var.aval.shape for var in eqn.invars)
    out = eqn.outvars[0].aval
    sides = zip(given, eqn.params["padding"], strict=True)
    shape = tuple(size + low + high for size, (low, high) in sides)
    padded, name = Array(shape, operand.dtype), eqn.primitive.name
    if shape != given:
        operand = scope.once(Kind.MOVE, (operand,), padded, "pad", eqn)
    iotas = [scope.add(Kind.MOVE, (), Array(shape, _PLACE), "iota", eqn) for _ in shape]
    largest = scope.add(Kind.CALL, (operand, *iotas), None, "reduce_window", eqn)
    found = tuple(scope.part(largest, Array(windows, _PLACE)) for _ in shape)
    positions = Array((*windows, len(shape)), _PLACE)
    joined = scope.add(Kind.MOVE, found, positions, "concatenate", eqn)
    updates = scope.add(Kind.MOVE, (source,), source, "copy", eqn)
    zeros = scope.spread(scope.scalar(0, out.dtype), padded, eqn)
    result = scope.add(Kind.UPDATE, (zeros, joined, updates), padded, name, eqn)
    return result if shape == out.shape else scope.add(Kind.MOVE, (result,), out, "slice", eqn)
