"""What of an entry is measured: the whole meta-gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten, tree_leaves, tree_unflatten

from mixflow.compiler.jaxprs.values import is_inexact, merge, partition
from mixflow.runtime.arguments import Arguments

AS_WRITTEN = "as written"
"""What a report says where an entry is measured, and no gradient of it."""

Made = TypeVar("Made")


def measured_target(
    fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], jit: dict[str, Any]
) -> tuple[Callable[..., Any], str]:
    """A meta-loss becomes its value_and_grad; anything else is measured as written.

    A meta-loss returns a real scalar, or a pair of one and auxiliary data; it is differentiated
    in the inexact leaves of its first argument. Where the second of the pair is like the first
    argument, it is taken for a gradient, and the function for a meta-gradient already.

    Arguments:
        fun: the entry's function.
        args, kwargs: arrays or `jax.ShapeDtypeStruct`.
        jit: the entry's jit options, of which the static ones matter here.

    Returns:
        The function to measure, of the same arguments, and what it is in words.
    """
    static = {name: value for name, value in jit.items() if name.startswith("static_")}
    result = jax.jit(fun, **static).eval_shape(*args, **kwargs)
    if not args or not Arguments(fun, static).is_traced(0, args, kwargs):
        return fun, AS_WRITTEN
    if not any(is_inexact(jax.typeof(leaf)) for leaf in tree_leaves(args[0])):
        return fun, AS_WRITTEN
    if not is_meta_loss(result, args):
        return fun, AS_WRITTEN
    has_aux = isinstance(result, tuple)
    return _meta_gradient(fun, has_aux=has_aux), "value_and_grad in the first argument"


def of_target(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    jit: dict[str, Any],
    attempt: Callable[[Callable[..., Any], str], Made],
) -> Made:
    """What an attempt makes of the function to measure; of `fun` itself where that fails.

    A scalar that reverse mode cannot differentiate (a while loop, say) is no meta-loss.

    Arguments:
        fun, args, kwargs, jit: as for `measured_target`.
        attempt: is given what `measured_target` returns.

    Raises:
        Whatever the attempt raises with `fun` itself.
    """
    target, words = measured_target(fun, args, kwargs, jit)
    try:
        return attempt(target, words)
    except ValueError:
        if target is fun:
            raise
        return attempt(fun, AS_WRITTEN)


def is_meta_loss(result: Any, args: tuple[Any, ...]) -> bool:
    """Whether a function of these arguments is a meta-loss, by the types that it returns.

    Arguments:
        result: what it returns, in arrays or abstract values.
        args: its positional arguments, the same.
    """
    match result:
        case (value, other) if isinstance(result, tuple) and _is_real_scalar(value):
            return not (args and _is_like(other, args[0]))
        case _:
            return _is_real_scalar(result)


def _is_real_scalar(result: Any) -> bool:
    return getattr(result, "shape", None) == () and jnp.issubdtype(result.dtype, jnp.floating)


def _is_like(result: Any, arg: Any) -> bool:
    """Whether a result has an argument's structure and shapes, as a gradient in it has."""
    leaves, tree = tree_flatten(result)
    others, other_tree = tree_flatten(arg)
    return tree == other_tree and all(
        (one.shape, one.dtype) == (other.shape, other.dtype)
        for one, other in zip(leaves, map(jax.typeof, others), strict=True)
    )


def _meta_gradient(fun: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    @functools.wraps(fun)
    def value_and_grad(first: Any, *rest: Any, **kwargs: Any) -> Any:
        leaves, tree = tree_flatten(first)
        active = [is_inexact(jax.typeof(leaf)) for leaf in leaves]
        point, fixed = partition(active, leaves)

        def objective(point: list[Any]) -> Any:
            return fun(tree_unflatten(tree, merge(active, point, fixed)), *rest, **kwargs)

        return jax.value_and_grad(objective, has_aux=has_aux)(point)

    return value_and_grad
