"""Are two results equal, as far as arithmetic in their precision can tell?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves

from mixflow.errors import VerificationError

FLOOR = 4
"""Units in the last place of a leaf's own type, which two right programs may always differ by: each
rounds its result once, and most of what comes before it rounds on the scale of the result."""

MARGIN = 10
"""A difference may be so many times the noise, which is known from a few samples only."""

FAR = 16
"""Units in the last place of a move that noise has to grow with: more than its own roundings add,
and for bfloat16, an eighth of a value, still small."""

SAMPLES = 5
"""Odd, so that the middle one is one of them."""


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
    leaves = [x for x in tree_leaves(tree) if getattr(x, "dtype", None) != jax.dtypes.float0]
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in leaves]


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


Noise = Callable[[int, int], Any]
"""The original's result with its roundings moved: by a seed, and by so many units in the last place
(`mixflow.runtime.verification.noise`)."""


def verify_results(result: Any, expected: Any, noise: Noise) -> Verified:
    """Compare the optimised program's result with the original's, leaf by leaf.

    A leaf may differ by `FLOOR` units in the last place, or by `MARGIN` times the original's noise:
    what its result changes by where its roundings are moved by one unit.

    Arguments:
        result, expected: pytrees of arrays with one structure.
        noise: called only where leaves differ by more than `FLOOR`.

    Raises:
        VerificationError: the difference is larger.
    """
    errors, leaves = _errors(result, expected), _arrays(expected)
    floors = list(map(_floor, leaves))
    if any(not error <= floor for error, floor in zip(errors, floors, strict=True)):
        found = _noise(expected, noise)
        for error, floor, heard, leaf in zip(errors, floors, found, leaves, strict=True):
            allowed = max(floor, MARGIN * heard.size)
            if not error <= allowed:
                raise VerificationError(_words(error, allowed, leaf, heard))
    return Verified(max(errors, default=0.0), _widest(expected))


def _floor(leaf: np.ndarray) -> float:
    """A leaf of zeros has none: its error is measured against another leaf's scale."""
    if not _norm(leaf):
        return 0.0
    return FLOOR * float(jnp.finfo(leaf.dtype).eps)


@dataclass(frozen=True)
class _Heard:
    """A leaf's changes where roundings move by one unit, and by `FAR`, over the samples.

    Noise is what grows with the move: of a smooth function, it is sixteen times as large where the
    move is. A step is as high for a small move as for a large one (a branch is crossed), and so
    is chaos, of which nothing is left but noise. Such changes allow nothing: a fault may well be
    as large.
    """

    near: list[float]
    far: list[float]

    @property
    def size(self) -> float:
        """The middle sample's, which no single step changes; 0 where it is no noise."""
        near, far = median(self.near), median(self.far)
        return near if np.isfinite(far) and far >= math.sqrt(FAR) * near else 0.0

    @property
    def jumps(self) -> bool:
        """Whether some sample is a step or chaos: a hundred times the noise is none of it."""
        return max(self.near) > 100 * self.size


def _noise(expected: Any, noise: Noise) -> list[_Heard]:
    def samples(ulps: int) -> list[list[float]]:
        return [_errors(noise(seed, ulps), tree_leaves(expected)) for seed in range(SAMPLES)]

    by_leaf = zip(zip(*samples(1), strict=True), zip(*samples(FAR), strict=True), strict=True)
    return [_Heard(list(near), list(far)) for near, far in by_leaf]


def _words(error: float, allowed: float, leaf: np.ndarray, heard: _Heard) -> str:
    why = (
        "plain JAX's own result jumps where its roundings change by one unit (a branch is "
        "crossed, an integer or a NaN changes, or all of it is noise), so that noise cannot be "
        "told from a fault here: compare in float64, or at other arguments"
        if heard.jumps
        else "look at what the report declined, and at assume_symmetric"
    )
    return (
        f"the optimised program differs from the original by {error:.2e} relative in a "
        f"result of dtype {leaf.dtype}, and {allowed:.2e} is allowed; {why}"
    )


def _widest(tree: Any) -> str:
    dtypes = [array.dtype for array in _arrays(tree) if jnp.issubdtype(array.dtype, jnp.inexact)]
    return str(max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)) if dtypes else "int"
