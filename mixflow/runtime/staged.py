"""A call of a compiled function: its arrays, and everything else in its place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.core
from jax.tree_util import tree_flatten, tree_leaves, tree_unflatten

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


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Kind:
    """What calls have in common that JAX traces once."""


class Kinds:
    """Tells calls apart as `jax.jit` does: by types, static arguments and JAX's configuration.

    Arguments:
        fun: the function that is called.
        static: the jit options that say what of the arguments is static.
    """

    def __init__(self, fun: Callable[..., Any], static: dict[str, Any]) -> None:
        @functools.wraps(fun, updated=())
        def kind(*_args: Any, **_kwargs: Any) -> Kind:
            return Kind()

        self._jit: Any = jax.jit(kind, **static)

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A key that is equal for calls that share a compiled program."""
        shardings = [getattr(leaf, "sharding", None) for leaf in tree_leaves((args, kwargs))]
        return self._jit.eval_shape(*args, **kwargs), tuple(shardings)
