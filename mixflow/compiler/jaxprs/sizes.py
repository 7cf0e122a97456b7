"""Sizes of arrays from their abstract values, and a number for sizes that are left open."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from mixflow.compiler import jax_compat

OPEN_SIZE = 32
"""What every symbol of a size that `jax.export` has left open counts as, in figures alone.

Such a size is a batch, or a number of steps. As one, a loop would seem to hold the state of one
step, and nothing would seem to pay; so it is as large as common batches and inner loops are, and a
power of two, of which a half or a quarter is whole. Results never depend on it.
"""


def number_of(size: Any) -> int:
    """A size of an array or length of a loop as a number, also where it is left open.

    With the symbols b and n, `b*n` is 1024, and `2*b + 1` is 65.
    """
    return size if isinstance(size, int) else jax_compat.size_at(size, OPEN_SIZE)


def dims_of(aval: Any) -> tuple[int, ...]:
    """The sizes of an array's dimensions; none where there is no array."""
    return tuple(map(number_of, getattr(aval, "shape", ())))


def count_elements(aval: Any) -> int:
    """The number of elements."""
    return math.prod(dims_of(aval))


@lru_cache  # NumPy makes the name anew each time that it is asked for
def item_bytes(dtype: Any) -> int:
    """Bytes of one element; none for float0 and where there is no array."""
    if dtype is None or getattr(dtype, "name", "") == "float0":
        return 0
    return getattr(dtype, "itemsize", 0)


def array_bytes(aval: Any) -> int:
    """Bytes of an array; none for tokens and whatever else is not one."""
    return count_elements(aval) * item_bytes(getattr(aval, "dtype", None))
