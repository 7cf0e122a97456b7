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


def equations_in(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, at any depth, each before those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in nested_jaxprs(equation):
            yield from equations_in(inner)


def holds_derivative(jaxpr: Any) -> bool:
    """Whether a symbolic derivative stands anywhere in a jaxpr."""
    return any(hasattr(one.params.get("function"), "suspects") for one in equations_in(jaxpr))
