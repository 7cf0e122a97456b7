"""What keeps a second run of the same computation apart from the first."""

from __future__ import annotations

from typing import Any

import jax
from jax.tree_util import tree_flatten, tree_unflatten


def held_back(values: Any) -> Any:
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
    for place, leaf in enumerate(leaves):
        groups.setdefault(jax.typeof(leaf).manual_axis_type, []).append(place)
    for places in groups.values():
        held = jax.lax.optimization_barrier([leaves[place] for place in places])
        for place, leaf in zip(places, held, strict=True):
            leaves[place] = leaf
    return tree_unflatten(tree, leaves)
