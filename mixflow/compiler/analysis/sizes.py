"""Sizes of arrays from their abstract values; what jax.export has left open counts as one."""

from __future__ import annotations

import math
from typing import Any


def known_dims(aval: Any) -> tuple[int, ...]:
    """The dimensions of known size; none where there is no array."""
    return tuple(dim for dim in getattr(aval, "shape", ()) if isinstance(dim, int))


def count_elements(aval: Any) -> int:
    """The number of elements."""
    return math.prod(known_dims(aval))


def item_bytes(dtype: Any) -> int:
    """Bytes of one element; none for float0 and where there is no array."""
    if dtype is None or getattr(dtype, "name", "") == "float0":
        return 0
    return getattr(dtype, "itemsize", 0)


def array_bytes(aval: Any) -> int:
    """Bytes of an array; none for tokens and whatever else is not one."""
    return count_elements(aval) * item_bytes(getattr(aval, "dtype", None))
