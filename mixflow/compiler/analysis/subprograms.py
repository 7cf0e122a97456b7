"""The programs inside equations, those of symbolic derivatives included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax.extend.core import jaxprs_in_params


def nested_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an equation, that of a symbolic derivative's function included."""
    yield from jaxprs_in_params(equation.params)
    function = equation.params.get("function")
    if hasattr(function, "suspects"):
        yield function.jaxpr.jaxpr


def holds_derivative(jaxpr: Any) -> bool:
    """Whether a symbolic derivative stands anywhere in a jaxpr."""
    return any(
        hasattr(equation.params.get("function"), "suspects")
        or any(map(holds_derivative, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )
