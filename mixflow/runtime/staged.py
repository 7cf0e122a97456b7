"""A call of a compiled function: its arrays, and everything else in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.core
from jax.tree_util import tree_flatten, tree_unflatten

from mixflow.compiler.capture import Captured, capture
from mixflow.compiler.differentiand import merge, partition
from mixflow.runtime.options import Options


@dataclass(frozen=True)
class Staged:
    """A call taken apart: the arrays, and everything else in its place."""

    fun: Callable[..., Any]
    leaves: list[Any]
    tree: Any
    dynamic: list[bool]

    @staticmethod
    def of(fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
        leaves, tree = tree_flatten((args, kwargs))
        return Staged(fun, leaves, tree, [isinstance(leaf, jax.core.Tracer) for leaf in leaves])

    @property
    def arrays(self) -> list[Any]:
        return partition(self.dynamic, self.leaves)[0]

    def capture(self, options: Options) -> Captured:
        """Trace the call under mixflow."""
        return capture(self.flat, self.arrays, options.assume_symmetric, self.fun)

    def flat(self, *arrays: Any) -> Any:
        """The function of the arrays alone."""
        fixed = partition(self.dynamic, self.leaves)[1]
        args, kwargs = tree_unflatten(self.tree, merge(self.dynamic, arrays, fixed))
        return self.fun(*args, **kwargs)


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A key that is equal for calls that share a compiled program."""
    leaves, tree = tree_flatten((args, kwargs))
    return tree, tuple(_leaf_key(leaf) for leaf in leaves)


def _leaf_key(leaf: Any) -> Any:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)
    # A Python scalar's value matters only where the argument is static: a plan too many is no harm.
    return type(leaf), repr(leaf)
