"""Evidence on whether a function's reverse-mode program is a true gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten, tree_leaves, tree_unflatten

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.values import is_inexact, merge, partition


@dataclass(frozen=True)
class Symmetry:
    """What `check_symmetry` found.

    Arguments:
        symmetric: whether the asymmetry is within the tolerance.
        max_rel_asymmetry: the largest |⟨u, Jv⟩ - ⟨Ju, v⟩| / (‖u‖ ‖Jv‖) that was seen.
        tolerance: the square root of the precision's unit roundoff.
    """

    symmetric: bool
    max_rel_asymmetry: float
    tolerance: float

    def __bool__(self) -> bool:
        return self.symmetric


def check_symmetry(f: Callable[..., Any], *args: Any, samples: int = 4, seed: int = 0) -> Symmetry:
    """Test the symmetry that forward over reverse rests on, at one point.

    For G(x, w) = (∇_x ⟨f, w⟩, f) over all inexact leaves of the arguments, the Jacobian is
    symmetric where the reverse-mode program of f is a gradient: ⟨u, J v⟩ = ⟨J u, v⟩ for every
    u and v, in JAX's pairing of tangents and cotangents (real, bilinear). Random u and v are
    tried. This is evidence and never permission: a clipped gradient is symmetric at every point
    below its threshold.

    Arguments:
        f: a function of pytrees of arrays; outputs without a derivative are left out.
        args: the point, pytrees of arrays; integers are held fixed. Float64 gives sharper
            evidence than float32.
        samples: how many random pairs to try.
        seed: for the random directions.

    Returns:
        A `Symmetry`, true where no asymmetry was seen.

    Raises:
        ValueError: no argument, or no output, has a derivative.

    Source: step 2 of the proof in `docs/derivative-rule.md`.
    """
    leaves, tree = tree_flatten(args)
    active = [is_inexact(jnp.asarray(leaf)) for leaf in leaves]
    point, fixed = partition(active, [jnp.asarray(leaf) for leaf in leaves])

    def flat(*point: Any) -> list[Any]:
        outputs = tree_leaves(f(*tree_unflatten(tree, merge(active, point, fixed))))
        return [jnp.asarray(y) for y in outputs if is_inexact(jnp.asarray(y))]

    def gradient_map(point: tuple[Any, ...], w: list[Any]) -> Any:
        value, pullback = jax_compat.VJP_OF_JAX(flat, *point)
        return pullback(w), value

    value = flat(*point)
    if not point or not value:
        raise ValueError("check_symmetry: no argument, or no output, of f has a derivative")
    keys = jax.random.split(jax.random.key(seed), 2 * samples + 1)
    at = (tuple(point), _random_like(keys[0], value))
    asymmetries = [
        _asymmetry(gradient_map, at, keys[2 * i + 1], keys[2 * i + 2]) for i in range(samples)
    ]
    worst = float(max(asymmetries))
    tolerance = float(jnp.finfo(jnp.result_type(*point, *value)).eps) ** 0.5
    return Symmetry(worst <= tolerance, worst, tolerance)


def _asymmetry(gradient_map: Callable[..., Any], at: Any, key_u: Any, key_v: Any) -> Any:
    u, v = _random_like(key_u, at), _random_like(key_v, at)
    _, pushed_u = jax.jvp(gradient_map, at, u)
    _, pushed_v = jax.jvp(gradient_map, at, v)
    left, right = _pairing(u, pushed_v), _pairing(pushed_u, v)
    scale = _norm(u) * _norm(pushed_v)
    return jnp.abs(left - right) / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def _random_like(key: Any, tree: Any) -> Any:
    leaves, structure = tree_flatten(tree)
    keys = jax.random.split(key, len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return tree_unflatten(structure, [jax.random.normal(k, x.shape, x.dtype) for k, x in pairs])


def _pairing(a: Any, b: Any) -> Any:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return sum(jnp.sum(x * y).real for x, y in pairs)


def _norm(tree: Any) -> Any:
    return jnp.sqrt(sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in tree_leaves(tree)))
