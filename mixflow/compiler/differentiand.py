"""The function that a symbolic derivative is a derivative of, and flat lists of its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from mixflow.compiler import jax_compat

Values = Sequence[Any]
TreeDef = Any  # jax.tree_util.PyTreeDef has no type stub


@dataclass(frozen=True, eq=False)
class Differentiand:
    """The function that an equation differentiates. Two are equal when they are one object.

    Arguments:
        jaxpr: f, closed and without constants; its inputs are c, then x.
        num_consts: the number of inputs that belong to c.
        carries: for each output of f, whether a cotangent is given for it. Auxiliary and
            integer outputs have none and are never differentiated in reverse.
        symmetric: whether f's reverse-mode program is known to be a true gradient, so that the
            pullback of its pullback may be taken as the pushforward of its pullback.
        custom: whether f holds custom rules that mixflow does not know, vouched for or not.
        suspects: what speaks against `symmetric`, for the report.
        batched: `vmap f` for each pattern of mapped constants that was met.
        spelled: the plain programs of its derivatives that were asked for.
    """

    jaxpr: ClosedJaxpr
    num_consts: int
    carries: tuple[bool, ...]
    symmetric: bool
    custom: bool = False
    suspects: tuple[Any, ...] = ()
    batched: dict[Any, Differentiand] = field(default_factory=dict, init=False, repr=False)
    spelled: dict[Any, ClosedJaxpr] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def call(self) -> Callable[..., list[Any]]:
        """f as a Python function of the flat c and x."""
        return jaxpr_as_fun(self.jaxpr)

    @property
    def num_points(self) -> int:
        """The number of leaves of x."""
        return len(self.jaxpr.in_avals) - self.num_consts

    @property
    def point_avals(self) -> list[Any]:
        """The abstract values of x."""
        return self.jaxpr.in_avals[self.num_consts :]

    def split(self, operands: Values) -> tuple[list[Any], list[Any], list[Any]]:
        """Cut a flat list of operands into c, x and w."""
        stop = self.num_consts + self.num_points
        return (
            list(operands[: self.num_consts]),
            list(operands[self.num_consts : stop]),
            list(operands[stop:]),
        )

    def value_and_pullback(self, consts: Values, point: Values) -> tuple[list[Any], Any]:
        """JAX's own `vjp` of f in x: the outputs of f, and a function of the flat w."""

        def carried(*point: Any) -> tuple[list[Any], list[Any]]:
            return partition(self.carries, self.call(*consts, *point))

        outputs, pullback, rest = jax_compat.VJP_OF_JAX(carried, *point, has_aux=True)
        return merge(self.carries, outputs, rest), lambda cotangents: pullback(list(cotangents))

    def gradient(self, consts: Values, point: Values) -> Any:
        """The pullback of f's own outputs: any cotangents would do to try f's rules."""
        outputs, pullback = self.value_and_pullback(consts, point)
        return pullback(partition(self.carries, outputs)[0])


def named_after(fun: Callable[..., Any]) -> Callable[[Any], Any]:
    """Let JAX's messages speak of the user's function instead of a wrapper around it."""

    def rename(wrapper: Any) -> Any:
        wrapper.__name__ = getattr(fun, "__name__", "function")
        wrapper.__wrapped__ = fun
        return wrapper

    return rename


def partition(mask: Sequence[bool], items: Values) -> tuple[list[Any], list[Any]]:
    """The items where the mask is true, and the others."""
    chosen = [item for keep, item in zip(mask, items, strict=True) if keep]
    return chosen, [item for keep, item in zip(mask, items, strict=True) if not keep]


def merge(mask: Sequence[bool], chosen: Values, others: Values) -> list[Any]:
    """Undo `partition`."""
    first, second = iter(chosen), iter(others)
    return [next(first) if keep else next(second) for keep in mask]


def is_inexact(aval: Any) -> bool:
    """Whether a value of this type has a derivative at all."""
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def spec_of(aval: Any) -> jax.ShapeDtypeStruct:
    """A type as JAX traces functions at it: with its sharding and the mesh axes it varies over."""
    return jax.ShapeDtypeStruct(
        aval.shape,
        aval.dtype,
        sharding=aval.sharding,
        weak_type=aval.weak_type,
        manual_axis_type=aval.manual_axis_type,
    )


def spread(mask: Sequence[bool], items: Values) -> list[Any]:
    """The items in the places where the mask is true, None elsewhere."""
    return merge(mask, items, [None] * (len(mask) - sum(mask)))
