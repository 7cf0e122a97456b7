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
        fun: the function to differentiate, of pytrees of arrays.
        primals: the point, one pytree of arrays for each positional argument; of any shapes,
            floating-point or complex where they are to be differentiated.
        has_aux: whether `fun` returns a pair of a value and auxiliary data.

    Returns:
        The value, its pullback, and the auxiliary data if `has_aux`. The pullback takes a
        cotangent of the value's shapes and dtypes, and returns a tuple, one pytree for each of
        `primals`.

    Raises:
        TypeError: what `jax.vjp` raises, for values that it cannot differentiate.

    Source: the symmetric rule of Kemaev et al. (ICML 2025, arXiv 2505.00793);
    `docs/derivative-rule.md` has the formula.
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
    """`jax.value_and_grad` whose own derivative is forward-over-reverse.

    Arguments:
        fun: a function that returns a scalar, or with `has_aux` a pair of a scalar and other data.
        argnums: which positional arguments to differentiate in.
        has_aux: whether `fun` returns auxiliary data.
        holomorphic: whether `fun` is promised to be holomorphic.
        allow_int: whether to allow integer arguments, whose derivatives are of type float0.

    Returns:
        A function of the same arguments, for the value and the gradient. The gradient has the
        shapes and dtypes of the arguments that `argnums` names.

    Raises:
        TypeError: from the function, where the result is no scalar or an argument has no
            derivative, as `jax.value_and_grad` does.

    Source: the symmetric rule of Kemaev et al. (ICML 2025, arXiv 2505.00793);
    `docs/derivative-rule.md` has the formula.
    """
    return _symbolic(jax.value_and_grad(fun, argnums, has_aux, holomorphic, allow_int))


def grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:
    """`jax.grad` whose own derivative is forward-over-reverse.

    Arguments:
        fun: a function that returns a scalar, or with `has_aux` a pair of a scalar and other data.
        argnums: which positional arguments to differentiate in.
        has_aux: whether `fun` returns auxiliary data; the gradient comes with it then.
        holomorphic: whether `fun` is promised to be holomorphic.
        allow_int: whether to allow integer arguments, whose derivatives are of type float0.

    Returns:
        A function of the same arguments, for the gradient. It has the shapes and dtypes of the
        arguments that `argnums` names.

    Raises:
        TypeError: from the function, where the result is no scalar or an argument has no
            derivative, as `jax.grad` does.

    Source: the symmetric rule of Kemaev et al. (ICML 2025, arXiv 2505.00793);
    `docs/derivative-rule.md` has the formula.
    """
    return _symbolic(jax.grad(fun, argnums, has_aux, holomorphic, allow_int))
