"""Which arguments of a call are static: those are handed on as they are, and never looked into.

A static argument may be a pytree, too. To take it apart and to put it together again would lose
what its flattening leaves out, and its identity; `jax.jit` does neither.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

import jax
import jax.core
from jax.tree_util import tree_leaves

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments, and arguments by name."""

_Marks = tuple[list[bool], dict[str, bool]]
"""For each argument of a call, whether it is traced."""


class Arguments:
    """Tells the arguments of a function's calls that are traced from those that are static.

    Arguments:
        fun: the function; its signature says which names are at which places.
        static: the jit options that say what is static.
    """

    def __init__(self, fun: Callable[..., Any], static: Mapping[str, Any]) -> None:
        self._fun = fun
        self._static = dict(static)
        self._known: dict[Any, _Marks] = {}

    def traced(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The arguments of a call without the static ones: a compiled program takes no others."""
        positions, names = self._marks(args, kwargs)
        return tuple(compress(args, positions)), {n: kwargs[n] for n in kwargs if names[n]}

    def with_traced(self, traced: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """A call with other traced arguments; the static ones stay the same objects."""
        positions, names = self._marks(args, kwargs)
        others = iter(traced[0])
        return (
            tuple(
                next(others) if is_traced else arg
                for is_traced, arg in zip(positions, args, strict=True)
            ),
            {n: traced[1][n] if names[n] else kwargs[n] for n in kwargs},
        )

    def mapped(
        self, change: Callable[[Any], Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Call:
        """A call whose traced arguments, as one pytree, went through a function."""
        return self.with_traced(change(self.traced(args, kwargs)), args, kwargs)

    def is_traced(self, position: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the positional argument at a place is traced."""
        return self._marks(args, kwargs)[0][position]

    def _marks(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Marks:
        if not self._static:
            return [True] * len(args), dict.fromkeys(kwargs, True)
        key = len(args), frozenset(kwargs)
        if key not in self._known:
            self._known[key] = self._ask(*key)
        return self._known[key]

    def _ask(self, count: int, names: frozenset[str]) -> _Marks:
        """JAX decides, and it may have any value in their place: integers can be static or not."""
        found: list[_Marks] = []

        @functools.wraps(self._fun, updated=())
        def note(*args: Any, **kwargs: Any) -> None:
            positions = [isinstance(arg, jax.core.Tracer) for arg in args]
            found.append((positions, {n: isinstance(kwargs[n], jax.core.Tracer) for n in kwargs}))

        jax.jit(note, **self._static).trace(*[0] * count, **dict.fromkeys(names, 0))
        return found[-1]


def has_open_sizes(args: Any) -> bool:
    """Whether `jax.export` has left a size of the arguments open, arrays or shapes in a pytree."""
    shapes = (getattr(leaf, "shape", ()) for leaf in tree_leaves(args))
    return any(jax.export.is_symbolic_dim(size) for shape in shapes for size in shape)
