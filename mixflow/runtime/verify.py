"""Are two results equal, as far as arithmetic in their precision can tell?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves, tree_map

from mixflow.errors import VerificationError

# Equally right programs differ by this much, relative to the largest entry: measured on
# meta-gradients, where float32 loses 1e-3 (docs/how-it-works.md).
TOLERANCE = {"float64": 1e-9, "complex128": 1e-9, "float32": 1e-3, "complex64": 1e-3}
_HALF_PRECISION = 1e-1
_SENSITIVITY_FACTOR = 10


@dataclass(frozen=True)
class Verified:
    """Arguments:
    max_rel_error: the largest ‖a - b‖∞ / ‖b‖∞ over the results' leaves.
    dtype: the widest inexact dtype among them.
    """

    max_rel_error: float
    dtype: str

    @property
    def words(self) -> str:
        """For a report."""
        if self.max_rel_error == 0:
            return "the results are equal"
        return f"results differ by at most {self.max_rel_error:.1e} relative ({self.dtype})"


def max_relative_error(result: Any, expected: Any) -> float:
    """The largest ‖a - b‖∞ / ‖b‖∞ over leaves; infinite where integers or NaNs differ.

    A leaf that should be zero is measured against the largest of all leaves.
    """
    return max(_errors(result, expected), default=0.0)


def _errors(result: Any, expected: Any) -> list[float]:
    pairs = list(zip(_arrays(result), _arrays(expected), strict=True))
    scale = max((_norm(b) for _, b in pairs), default=0.0) or 1.0
    return [_leaf_error(a, b, scale) for a, b in pairs]


def _arrays(tree: Any) -> list[np.ndarray]:
    leaves = [leaf for leaf in tree_leaves(tree) if not _is_float0(leaf)]
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in leaves]


def _is_float0(leaf: Any) -> bool:
    return getattr(leaf, "dtype", None) == jax.dtypes.float0


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _norm(array: np.ndarray) -> float:
    if not array.size or not jnp.issubdtype(array.dtype, jnp.inexact):
        return 0.0
    magnitudes = np.abs(array.astype(np.complex128))
    finite = magnitudes[np.isfinite(magnitudes)]
    return float(finite.max()) if finite.size else 0.0


def _leaf_error(result: np.ndarray, expected: np.ndarray, scale: float) -> float:
    if result.shape != expected.shape or result.dtype != expected.dtype:
        return np.inf
    if not jnp.issubdtype(expected.dtype, jnp.inexact):
        return 0.0 if np.array_equal(result, expected) else np.inf
    wide, wide_expected = result.astype(np.complex128), expected.astype(np.complex128)
    differs = (wide != wide_expected) & ~(np.isnan(wide) & np.isnan(wide_expected))
    if not np.all(np.isfinite(wide[differs]) & np.isfinite(wide_expected[differs])):
        return np.inf
    difference = np.abs(wide[differs] - wide_expected[differs])
    return float(difference.max(initial=0.0)) / (_norm(expected) or scale)


def verify_results(result: Any, expected: Any, nudged: Any) -> Verified:
    """Compare the optimised program's result with the original's, leaf by leaf.

    Allowed is the leaf's precision's tolerance, or ten times what a change of the arguments by
    one unit in the last place does to the leaf in the original, where that is more (long loops).

    Arguments:
        result, expected: pytrees of arrays with one structure.
        nudged: the original's result for nudged arguments.

    Raises:
        VerificationError: the difference is larger.
    """
    errors, sensitivities = _errors(result, expected), _errors(nudged, expected)
    for error, sensitivity, leaf in zip(errors, sensitivities, _arrays(expected), strict=True):
        allowed = _allowed(sensitivity, leaf.dtype)
        if not error <= allowed:
            raise VerificationError(
                f"the optimised program differs from the original by {error:.2e} relative in a "
                f"result of dtype {leaf.dtype}, and {allowed:.2e} is allowed; look at what the "
                "report declined, and at assume_symmetric"
            )
    return Verified(max(errors, default=0.0), _widest(expected))


def _allowed(sensitivity: float, dtype: Any) -> float:
    """A sensitivity that is not finite (a branch was crossed) allows nothing more."""
    tolerance = TOLERANCE.get(str(dtype), _HALF_PRECISION)
    extra = _SENSITIVITY_FACTOR * sensitivity if np.isfinite(sensitivity) else 0.0
    return max(tolerance, extra)


def _widest(tree: Any) -> str:
    dtypes = [array.dtype for array in _arrays(tree) if jnp.issubdtype(array.dtype, jnp.inexact)]
    return str(max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)) if dtypes else "int"


def nudge(tree: Any) -> Any:
    """Arguments whose every real array is one unit in the last place up."""
    return tree_map(_one_ulp_up, tree)


def _one_ulp_up(leaf: Any) -> Any:
    is_array = isinstance(leaf, (jax.Array, np.ndarray))
    if not is_array or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.nextafter(leaf, jnp.full_like(leaf, jnp.inf))
