"""A call of a compiled function: its arrays, and its static arguments as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax.tree_util import tree_flatten, tree_leaves, tree_unflatten

from mixflow.compiler.capture.capture import Captured, capture
from mixflow.planner.collector import collector_held_back
from mixflow.runtime.arguments import Arguments
from mixflow.runtime.options import Options

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Staged:
    """A call taken apart: the arrays, and the static arguments as they are."""

    fun: Callable[..., Any]
    arguments: Arguments
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arrays: list[Any]
    tree: Any

    @staticmethod
    def of(
        fun: Callable[..., Any],
        arguments: Arguments,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Staged:
        """Take apart a call that `jax.jit` traces."""
        return Staged(fun, arguments, args, kwargs, *tree_flatten(arguments.traced(args, kwargs)))

    def capture(self, options: Options, left_to_jax: str | None = None) -> Captured:
        """Trace the call under mixflow, or as JAX's own for a reason."""
        return capture(self.flat, self.arrays, options.assume_symmetric, self.fun, left_to_jax)

    def flat(self, *arrays: Any) -> Any:
        """The function of the arrays alone."""
        traced = tree_unflatten(self.tree, arrays)
        args, kwargs = self.arguments.with_traced(traced, self.args, self.kwargs)
        return self.fun(*args, **kwargs)


@collector_held_back()
def planned(
    capture: Callable[..., Captured], plan: Callable[[Captured], Plan]
) -> tuple[Captured, Plan]:
    """A captured program, and what is made of it.

    Where JAX has no derivative of what one of its rules computes, which plain JAX never asks for,
    the program is JAX's own: a gradient in a gradient of `gammainc`, whose value nobody reads.

    Arguments:
        capture: traces the program; given a reason, as JAX's own.
        plan: makes something of it.
    """
    try:
        captured = capture()
        return captured, plan(captured)
    except NotImplementedError as error:
        captured = capture(left_to_jax=f"JAX does not differentiate it as mixflow would: {error}")
        return captured, plan(captured)


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Signature:
    """What calls have in common that JAX traces once."""


class Signatures:
    """Tells calls apart as `jax.jit` does: by types, static arguments and JAX's configuration.

    Arguments:
        fun: the function that is called.
        static: the jit options that say what of the arguments is static.
    """

    def __init__(self, fun: Callable[..., Any], static: dict[str, Any]) -> None:
        @functools.wraps(fun, updated=())
        def kind(*_args: Any, **_kwargs: Any) -> Signature:
            return Signature()

        self._jit: Any = jax.jit(kind, **static)
        self._arguments = Arguments(fun, static)

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A key that is equal for calls that share a compiled program."""
        leaves = tree_leaves(self._arguments.traced(args, kwargs))
        shardings = [getattr(leaf, "sharding", None) for leaf in leaves]
        return self._jit.eval_shape(*args, **kwargs), tuple(shardings)
