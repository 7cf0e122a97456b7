"""The function inside a `jax.vjp`, traced once to a closed jaxpr."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr, take_current_trace
from jax.tree_util import tree_flatten, tree_unflatten

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.flagged import without_flags
from mixflow.compiler.jaxprs.values import TreeDef, is_inexact, merge, partition


@dataclass(frozen=True, eq=False)
class TracedFunction:
    """A traced function together with the point it was traced at.

    Arguments:
        fun: the user's function, which is not called again; it gives its name to messages.
        jaxpr: its inputs are the closed-over values, the inactive leaves (integers, keys), and
            the active leaves, in this order; its outputs the value's leaves, then those leaves
            of the auxiliary data that depend on the trace.
        closure: the closed-over values, tracers of enclosing traces among them.
        leaves: the flat primals.
        active: which leaves have a derivative.
        in_tree: the primals' structure, a tuple.
        out_tree: the value's structure.
        rebuild_aux: auxiliary data from its leaves in the jaxpr; None without `has_aux`.
        trace: the trace that is now over; a custom rule may hold on to its tracers.
    """

    fun: Callable[..., Any]
    jaxpr: ClosedJaxpr
    closure: list[Any]
    leaves: list[Any]
    active: tuple[bool, ...]
    in_tree: TreeDef
    out_tree: TreeDef
    rebuild_aux: Callable[[list[Any]], Any] | None
    trace: Any = None

    @property
    def layout(self) -> TracedFunction:
        """The same without its values, which then holds no tracers."""
        return replace(self, closure=[], leaves=[], trace=None)

    @property
    def point(self) -> list[Any]:
        """The active leaves: x."""
        return partition(self.active, self.leaves)[0]

    @property
    def consts(self) -> list[Any]:
        """Everything else that the jaxpr takes: c."""
        return [*self.closure, *partition(self.active, self.leaves)[1]]

    @property
    def carries(self) -> tuple[bool, ...]:
        """Which outputs take a cotangent: the value's, where they have a derivative."""
        count = self.out_tree.num_leaves
        return tuple(
            position < count and is_inexact(aval)
            for position, aval in enumerate(self.jaxpr.out_avals)
        )

    def unflatten(self, outputs: list[Any]) -> tuple[Any, tuple[Any, ...]]:
        """The value, and the auxiliary data as an empty tuple or a tuple of one."""
        count = self.out_tree.num_leaves
        value = tree_unflatten(self.out_tree, outputs[:count])
        aux = () if self.rebuild_aux is None else (self.rebuild_aux(outputs[count:]),)
        return value, aux

    def differentiate(self) -> Any:
        """JAX's own `vjp` of the traced function: the user's is not called a second time."""
        has_aux = self.rebuild_aux is not None

        @functools.wraps(self.fun)
        def replay(*primals: Any) -> Any:
            chosen, others = partition(self.active, tree_flatten(primals)[0])
            outputs = jax.core.eval_jaxpr(
                self.jaxpr.jaxpr, self.jaxpr.consts, *self.closure, *others, *chosen
            )
            value, aux = self.unflatten(outputs)
            return (value, *aux) if has_aux else value

        primals = tree_unflatten(self.in_tree, self.leaves)
        return jax_compat.VJP_OF_JAX(replay, *primals, has_aux=has_aux)


class WrongResult(Exception):
    """A function returned what `jax.vjp` refuses."""


def trace_function(
    fun: Callable[..., Any], leaves: list[Any], in_tree: TreeDef, has_aux: bool
) -> TracedFunction:
    """Trace `fun` at the types of its primals, whatever it closes over.

    Arguments:
        fun: what `jax.vjp` was given.
        leaves: the flat primals, arrays or tracers.
        in_tree: their structure, a tuple of the positional arguments.
        has_aux: whether `fun` returns a pair of a value and auxiliary data.

    Raises:
        WrongResult: `fun` did not return arrays, or with `has_aux` a pair.
        Whatever `fun` raises.
    """
    seen: dict[str, Any] = {}

    def flat(*leaves: Any) -> list[Any]:
        with take_current_trace() as trace:
            seen["trace"] = trace
        result = fun(*tree_unflatten(in_tree, leaves))
        value, aux = _pair(result) if has_aux else (result, None)
        outputs, seen["out_tree"] = tree_flatten(value)
        if not all(map(_is_array, outputs)):
            raise WrongResult
        aux_leaves, aux_tree = tree_flatten(aux)
        # Only tracers become outputs: Python scalars, strings and arrays stay what they are.
        traced = [isinstance(leaf, jax.core.Tracer) for leaf in aux_leaves]
        dynamic, static = partition(traced, aux_leaves)
        seen["aux"] = (aux_tree, traced, static)
        return [*outputs, *dynamic]

    flat.__name__ = getattr(fun, "__name__", "function")
    closed = without_flags(jax.make_jaxpr(flat)(*leaves))
    active = tuple(is_inexact(aval) for aval in closed.in_avals)
    return TracedFunction(
        fun,
        _with_point_last(closed, active),
        list(closed.consts),
        leaves,
        active,
        in_tree,
        seen["out_tree"],
        _aux_builder(*seen["aux"]) if has_aux else None,
        seen["trace"],
    )


def _pair(result: Any) -> tuple[Any, Any]:
    match result:
        case (value, aux):
            return value, aux
        case _:
            raise WrongResult


def _is_array(value: Any) -> bool:
    try:
        jax.typeof(value)
    except TypeError:
        return False
    return True


def _aux_builder(
    tree: TreeDef, traced: list[bool], static: list[Any]
) -> Callable[[list[Any]], Any]:
    return lambda dynamic: tree_unflatten(tree, merge(traced, dynamic, static))


def _with_point_last(closed: ClosedJaxpr, active: tuple[bool, ...]) -> ClosedJaxpr:
    """Turn constants into inputs, and order the inputs: constants, inactive, active."""
    jaxpr = closed.jaxpr
    point, others = partition(active, list(jaxpr.invars))
    return ClosedJaxpr(jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *others, *point]), ())
