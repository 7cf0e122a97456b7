"""What the derivative rule of one equation is good for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jax.extend.core import jaxprs_in_params

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.subprograms import nested_jaxprs
from mixflow.compiler.primitives import CUSTOM_RULES, UNKNOWN, row_of
from mixflow.compiler.rules.linearity import is_transposable_solve, why_not_linear
from mixflow.compiler.rules.trust import is_trusted


@dataclass(frozen=True)
class Suspect:
    """Something in a function that speaks against a derivative rule.

    Arguments:
        name: the function's or primitive's name, as `assume_symmetric` takes it.
        at: the user's `file:line` of the call, or of the function where JAX kept no traceback.
        why: one clause for the report.
    """

    name: str
    at: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.at}): {self.why}"


OPAQUE: dict[str, str] = {
    "custom_vjp_call": "a custom_vjp whose rule mixflow does not know",
    "custom_jvp_call": "a custom_jvp whose rule mixflow does not know",
    "custom_linear_solve": "a solve is only as exact as the solver that it was given",
    "call_hi_primitive": "a rule that came with its function, as custom_root's does",
    "linear_call": "a transpose that was given by hand",
    "custom_transpose_call": "a transpose that was given by hand",
}
"""Primitives whose derivative is what somebody said it is, with what to tell the user."""


def is_opaque(equation: Any) -> bool:
    """Whether an equation's derivative is what somebody said it is."""
    return equation.primitive.name in OPAQUE and row_of(equation) is UNKNOWN


def is_custom(equation: Any) -> bool:
    """Whether an equation carries an untrusted rule."""
    return is_opaque(equation) and not is_trusted(equation)


def custom_rules(jaxpr: Any) -> Iterator[Any]:
    """Every equation in a jaxpr that carries an untrusted rule, at any depth."""
    return filter(is_custom, other_values(jaxpr.eqns))


def other_values(equations: Iterable[Any]) -> Iterator[Any]:
    """The equations, at any depth, that may have another value where they are differentiated.

    A custom rule may compute what it likes; and of a matrix that is not symmetric, `eigh` reads
    one triangle, where its derivative rule first takes the mean of both.
    """
    for equation in equations:
        if is_custom(equation) or equation.primitive.name == "eigh":
            yield equation
        elif not is_opaque(equation):
            for inner in nested_jaxprs(equation):
                yield from other_values(inner.eqns)


def is_true(equation: Any) -> bool:
    """Whether an equation's rule is known to be the true derivative of what it computes."""
    if is_opaque(equation):
        return is_trusted(equation)
    return row_of(equation).true


def is_finite(equation: Any) -> bool:
    """Whether an equation's derivatives are known, and finite wherever its value is."""
    if is_opaque(equation):
        return is_trusted(equation) and why_not_linear(equation) is None
    return row_of(equation).finite


def why_not_transposed(equation: Any) -> str | None:
    """Why a function with this equation is not for the transposed rule, or None."""
    name = equation.primitive.name
    if name in CUSTOM_RULES:
        return None if is_trusted(equation) else why_not_linear(equation)
    if name == "custom_linear_solve":
        return None if is_transposable_solve(equation) else "it has no solver for the transpose"
    if name == "call_hi_primitive" and is_opaque(equation):
        is_root = jax_compat.primitive_name(equation) == "CustomRoot"
        return None if is_root else "a rule that came with its function"
    if name == "custom_transpose_call":
        return "a transpose that was given by hand"
    if any(_holds_custom_vjp(inner) for inner in jaxprs_in_params(equation.params)):
        return f"a custom_vjp inside of {name} has no forward mode"
    return None


def _holds_custom_vjp(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name == "custom_vjp_call"
        or any(map(_holds_custom_vjp, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


def suspect(equation: Any) -> Suspect:
    """What is said of an equation whose rule is not known to be the true derivative."""
    name = equation.primitive.name
    if not is_opaque(equation):
        return named(equation, "its derivative rule need not be its true derivative")
    found = named(equation, "")
    advice = f"assume_symmetric=({found.name!r},) vouches for it"
    return Suspect(found.name, found.at, f"{OPAQUE[name]}; {advice}")


def named(equation: Any, why: str) -> Suspect:
    """A reason with the name of the equation's function or primitive, and its place."""
    name, place = equation.primitive.name, "<unknown>"
    if "call_jaxpr" in equation.params and name in OPAQUE:
        name, place = jax_compat.rule_name(equation.params)
    called_at = jax_compat.source_line(equation.source_info)
    return Suspect(name, place if called_at == "<unknown>" else called_at, why)
