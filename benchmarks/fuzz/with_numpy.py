"""The most frequent primitives by NumPy, which compiles nothing: a microsecond or two for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DTYPES = frozenset(np.dtype(name) for name in ("float64", "int64", "int32", "bool"))
"""Where NumPy's arithmetic is XLA's, but for the last bits."""


def by_numpy(equation: Any, operands: Sequence[Any]) -> list[np.ndarray] | None:
    """An equation's results; None where they are not to be had from here."""
    function = FUNCTIONS.get(equation.primitive.name)
    atoms = (*equation.invars, *equation.outvars)
    if function is None or any(atom.aval.dtype not in DTYPES for atom in atoms):
        return None
    with np.errstate(all="ignore"):
        result = function(*map(np.asarray, operands), **equation.params)
    return [np.asarray(result, equation.outvars[0].aval.dtype)]


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *operands, **_: function(*operands)


def _divide(x: Any, y: Any) -> Any:
    """Whole numbers are divided towards zero."""
    return np.divide(x, y) if x.dtype.kind == "f" else np.trunc(np.divide(x, y))


def _broadcast(x: Any, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> Any:
    ones = [1] * len(shape)
    for size, dimension in zip(x.shape, broadcast_dimensions, strict=True):
        ones[dimension] = size
    return np.broadcast_to(x.reshape(ones), shape)


def _select(which: Any, *cases: Any, **_: Any) -> Any:
    return np.choose(np.broadcast_to(which.astype(int), cases[0].shape), cases)


def _dot(x: Any, y: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    """Each dimension gets a number; those that belong together get the same."""
    (x_summed, y_summed), (x_batch, y_batch) = dimension_numbers
    of_x, of_y = list(range(x.ndim)), list(range(x.ndim, x.ndim + y.ndim))
    for i, j in zip((*x_summed, *x_batch), (*y_summed, *y_batch), strict=True):
        of_y[j] = of_x[i]
    free = [of_x[i] for i in range(x.ndim) if i not in (*x_summed, *x_batch)]
    free += [of_y[j] for j in range(y.ndim) if j not in (*y_summed, *y_batch)]
    return np.einsum(x, of_x, y, of_y, [*(of_x[i] for i in x_batch), *free])


def _reshape(x: Any, *, new_sizes: Any, dimensions: Any, **_: Any) -> Any:
    """In the order of the dimensions; None is their own order (to `np.transpose`, the reverse)."""
    ordered = x if dimensions is None else np.transpose(x, dimensions)
    return ordered.reshape(new_sizes)


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    steps = strides or [1] * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": _elementwise(np.add),
    "add_any": _elementwise(np.add),
    "sub": _elementwise(np.subtract),
    "mul": _elementwise(np.multiply),
    "div": _elementwise(_divide),
    "neg": _elementwise(np.negative),
    "max": _elementwise(np.maximum),
    "min": _elementwise(np.minimum),
    "abs": _elementwise(np.abs),
    "sign": _elementwise(np.sign),
    "exp": _elementwise(np.exp),
    "expm1": _elementwise(np.expm1),
    "log": _elementwise(np.log),
    "log1p": _elementwise(np.log1p),
    "sin": _elementwise(np.sin),
    "cos": _elementwise(np.cos),
    "tanh": _elementwise(np.tanh),
    "sqrt": _elementwise(np.sqrt),
    "rsqrt": _elementwise(lambda x: 1.0 / np.sqrt(x)),
    "square": _elementwise(np.square),
    "logistic": _elementwise(lambda x: 1.0 / (1.0 + np.exp(-x))),
    "pow": _elementwise(np.power),
    "integer_pow": lambda x, y: np.power(x, y) if y >= 0 else 1.0 / np.power(x, -y),
    "eq": _elementwise(np.equal),
    "ne": _elementwise(np.not_equal),
    "lt": _elementwise(np.less),
    "le": _elementwise(np.less_equal),
    "gt": _elementwise(np.greater),
    "ge": _elementwise(np.greater_equal),
    "and": _elementwise(np.bitwise_and),
    "or": _elementwise(np.bitwise_or),
    "not": _elementwise(np.invert),
    "is_finite": _elementwise(np.isfinite),
    "copy": _elementwise(np.copy),
    "select_n": _select,
    "broadcast_in_dim": _broadcast,
    "dot_general": _dot,
    "slice": _slice,
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "reshape": _reshape,
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, dimensions),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "reduce_sum": lambda x, *, axes, **_: np.sum(x, axes),
    "reduce_max": lambda x, *, axes, **_: np.max(x, axes),
    "reduce_min": lambda x, *, axes, **_: np.min(x, axes),
    "iota": lambda *, shape, dimension, **_: np.indices(shape)[dimension],
}
"""By primitive; each takes the operands, and the parameters by name."""
