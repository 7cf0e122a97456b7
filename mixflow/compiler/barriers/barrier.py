"""What keeps a second run of the same computation apart from the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.interpreters import ad
from jax.tree_util import tree_flatten, tree_unflatten

(_equation,) = jax.make_jaxpr(jax.lax.optimization_barrier)(0.0).eqns
barrier_p = _equation.primitive
"""JAX's barrier, of which JAX exports the function alone."""


def waiting_for_each_other(values: Any) -> Any:
    """The same values, each behind a barrier that waits for others of them.

    A pushforward runs f's forward pass again. Without a barrier that waits for the cotangents, XLA
    would merge that with the first run, or start it early, and keep f's intermediates alive in
    between.

    Arguments:
        values: a pytree: what the forward pass is given, and the cotangents.
    """
    leaves, tree = tree_flatten(values)
    # On JAX 0.10 all that passes one barrier varies over the same axes of a shard_map afterwards.
    # Points and their cotangents have one type, so each barrier still waits for a cotangent.
    groups: dict[Any, list[int]] = {}
    for position, leaf in enumerate(leaves):
        groups.setdefault(jax.typeof(leaf).manual_axis_type, []).append(position)
    for positions in groups.values():
        held = jax.lax.optimization_barrier([leaves[position] for position in positions])
        for position, leaf in zip(positions, held, strict=True):
            leaves[position] = leaf
    return tree_unflatten(tree, leaves)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """What does not move has no tangent after the barrier either; JAX's own rule makes zeros.

    With them, reverse mode reaches what it never reaches in plain JAX. In

        h * lax.while_loop(lambda s: s < 2.0, lambda s: 1.5 * s, x)

    h moves and x does not. If x passes a barrier with h, and then has a tangent of zeros, the loop
    would be transposed, which JAX refuses.
    """
    moves = [not isinstance(tangent, ad.Zero) for tangent in tangents]
    moved = iter(barrier_p.bind(*(t for t, flag in zip(tangents, moves, strict=True) if flag)))
    pushed = [next(moved) if flag else t for t, flag in zip(tangents, moves, strict=True)]
    return barrier_p.bind(*primals), pushed


def register() -> None:
    """Give JAX's barrier the rule above."""
    ad.primitive_jvps[barrier_p] = _jvp
