"""Evidence on whether a function's reverse-mode program is a true gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import tree_flatten, tree_unflatten

from mixflow.compiler import jax_compat
from mixflow.compiler.differentiand import is_inexact, merge, partition


def check_symmetry(
    f: Callable[..., Any], *args: Any, samples: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Test the symmetry that forward over reverse rests on, at one point.

    For G(x, w) = (∇_x ⟨f, w⟩, f) over all inexact leaves of the arguments, the Jacobian is
    symmetric where the reverse-mode program of f is a gradient: ⟨u, J v⟩ = ⟨J u, v⟩ for every
    u and v. Random u and v are tried. This is evidence and never permission: a clipped gradient
    is symmetric at every point below its threshold.

    Arguments:
        f: a function of pytrees of arrays, with inexact outputs.
        args: the point.
        samples: how many random pairs to try.
        seed: for the random directions.

    Returns:
        `{"symmetric": bool, "max_rel_asymmetry": float, "tolerance": float}`.

    Raises:
        ValueError: no argument has a derivative.

    Source: design of mixflow, section 6; `docs/derivative-rule.md`.
    """
    leaves, tree = tree_flatten(args)
    active = [is_inexact(jnp.asarray(leaf)) for leaf in leaves]
    point, fixed = partition(active, [jnp.asarray(leaf) for leaf in leaves])
    if not point:
        raise ValueError("check_symmetry: no argument of f has a derivative")

    def flat(*point: Any) -> Any:
        return f(*tree_unflatten(tree, merge(active, point, fixed)))

    def gradient_map(point: Any, w: Any) -> Any:
        value, pullback = jax_compat.VJP_OF_JAX(flat, *point)
        return pullback(w), value

    value = flat(*point)
    keys = jax.random.split(jax.random.key(seed), 2 * samples + 1)
    at = (tuple(point), _random_like(keys[0], value))
    asymmetries = [
        _asymmetry(gradient_map, at, keys[2 * i + 1], keys[2 * i + 2]) for i in range(samples)
    ]
    worst = float(jnp.max(jnp.stack(asymmetries)))
    tolerance = float(jnp.finfo(ravel_pytree(at)[0].dtype).eps) ** 0.5
    return {"symmetric": worst <= tolerance, "max_rel_asymmetry": worst, "tolerance": tolerance}


def _asymmetry(gradient_map: Callable[..., Any], at: Any, key_u: Any, key_v: Any) -> Any:
    u, v = _random_like(key_u, at), _random_like(key_v, at)
    _, pushed_u = jax.jvp(gradient_map, at, u)
    _, pushed_v = jax.jvp(gradient_map, at, v)
    left, right = _inner(u, pushed_v), _inner(pushed_u, v)
    scale = jnp.sqrt(_inner(u, u) * _inner(pushed_v, pushed_v))
    return jnp.abs(left - right) / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def _random_like(key: Any, tree: Any) -> Any:
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def _inner(a: Any, b: Any) -> Any:
    return jnp.vdot(ravel_pytree(a)[0], ravel_pytree(b)[0]).real
