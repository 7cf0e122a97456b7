"""`mixflow.vjp`, `mixflow.grad` and `mixflow.value_and_grad`: symbolic by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax

from mixflow.compiler.recording import Recording, current_recording


def _capturing() -> AbstractContextManager[Any]:
    return nullcontext() if current_recording() else Recording().active()


def _symbolic(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def symbolic(*args: Any, **kwargs: Any) -> Any:
        with _capturing():
            return call(*args, **kwargs)

    return symbolic


def vjp(fun: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """`jax.vjp` whose own derivative is forward-over-reverse, with or without `mixflow.compile`.

    Arguments:
        fun: the function to differentiate.
        primals: the point, one pytree of arrays for each positional argument.
        has_aux: whether `fun` returns a pair of a value and auxiliary data.

    Returns:
        The value, its pullback, and the auxiliary data if `has_aux`.

    Source: Kemaev et al. (ICML 2025, arXiv 2505.00793).
    """
    with _capturing():
        return jax.vjp(fun, *primals, has_aux=has_aux)


def value_and_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:
    """`jax.value_and_grad` whose own derivative is forward-over-reverse; arguments as there."""
    return _symbolic(jax.value_and_grad(fun, argnums, has_aux, holomorphic, allow_int))


def grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:
    """`jax.grad` whose own derivative is forward-over-reverse; arguments as there."""
    return _symbolic(jax.grad(fun, argnums, has_aux, holomorphic, allow_int))
