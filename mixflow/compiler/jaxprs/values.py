"""Flat lists of values, their types, and single equations as functions of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Var, jaxpr_as_fun

Values = Sequence[Any]
TreeDef = Any  # jax.tree_util.PyTreeDef has no type stub


def one_equation(eqn: Any) -> Callable[..., list[Any]]:
    """An equation as a Python function of its operands.

    It raises ValueError where a custom rule's value is not of the shape that the equation says.
    """
    invars = [Var(atom.aval) for atom in eqn.invars]
    outvars = [Var(var.aval) for var in eqn.outvars]
    debug_info = DebugInfo("mixflow", eqn.primitive.name, ("",) * len(invars), ("",) * len(outvars))
    moved = eqn.replace(invars=invars, outvars=outvars)
    jaxpr = Jaxpr([], invars, outvars, [moved], eqn.effects, debug_info=debug_info)
    run = jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))

    def call(*operands: Any) -> list[Any]:
        results = run(*operands)
        for result, var in zip(results, eqn.outvars, strict=True):
            if jnp.shape(result) != var.aval.shape:
                raise ValueError(f"{eqn.primitive} gives {jax.typeof(result)} for {var.aval}")
        return results

    return call


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


def as_arrays(values: Values) -> list[Any]:
    """The values, NumPy's as JAX's: a custom rule may return such, and no jaxpr may hold one."""
    return [jnp.asarray(v) if isinstance(v, (np.ndarray, np.generic)) else v for v in values]


def spread(mask: Sequence[bool], items: Values) -> list[Any]:
    """The items in the places where the mask is true, None elsewhere."""
    return merge(mask, items, [None] * (len(mask) - sum(mask)))
