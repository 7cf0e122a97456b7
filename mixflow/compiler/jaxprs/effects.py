"""Which equations have effects, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.subprograms import nested_jaxprs

_DEBUGGING = {"debug_print": "jax.debug.print", "debug_callback": "jax.debug.callback"}


def effects_in(jaxpr: Any) -> Iterator[str]:
    """Every equation with an effect, at any depth: what it calls, and at which line.

    The use of a named axis counts for none.
    """
    for equation in jaxpr.eqns:
        if not all(map(jax_compat.is_axis_effect, equation.effects)):
            nested = [words for inner in nested_jaxprs(equation) for words in effects_in(inner)]
            yield from nested or [
                f"{callback_name(equation)} at {jax_compat.source_line(equation.source_info)}"
            ]


def callback_name(equation: Any) -> str:
    """What an equation that calls back to the host calls, as in "io_callback of save"."""
    primitive: str = equation.primitive.name
    name = _DEBUGGING.get(primitive, primitive)
    called = getattr(equation.params.get("callback"), "callback_func", None)
    function = getattr(called, "__name__", None)
    return name if function is None else f"{name} of {function}"
