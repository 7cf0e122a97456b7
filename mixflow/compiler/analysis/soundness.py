"""Which functions have a reverse-mode program that is a true gradient.

The forward-over-reverse rule rests on symmetric second derivatives, and so on the reverse-mode
program of f being the gradient of ⟨f, w⟩. A custom rule can break that: straight-through
estimators, clipped or reversed gradients, implicit rules. Trust is therefore an explicit list,
matched by the identity of the rule itself; all other custom rules make f suspect.
`stop_gradient` needs no care: it blocks the same paths at every order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jax.extend.core import jaxprs_in_params

from mixflow.compiler import jax_compat

TRUSTED: dict[str, str] = {
    "jax.nn.relu": "its rule is the derivative away from 0, and its own derivative is 0",
    "jax.nn.relu6": "as relu",
    "jax.nn.log1mexp": "the rule is the derivative of log(1 - exp(-x)), stably written",
    jax_compat.private("nn.functions._softmax"): "y·(ẋ - ⟨y, ẋ⟩) is softmax's derivative",
    jax_compat.private("lax.other.logaddexp"): "the rule is the derivative, stably written",
    jax_compat.private("lax.other.logaddexp2"): "the rule is the derivative, stably written",
    jax_compat.private(
        "numpy.ufuncs._sinc_maclaurin"
    ): "each rule is the next Maclaurin coefficient",
    jax_compat.private("numpy.ufuncs._hypot"): "the rule is the derivative, guarded at 0",
    jax_compat.private("scipy.special._rel_entr"): "the rule is the derivative x ↦ log(x/y) + 1",
    "jax.scipy.special.xlogy": "the rule is the derivative, extended to x = 0",
    "jax.scipy.special.xlog1py": "the rule is the derivative, extended to x = 0",
    jax_compat.private("scipy.special._xlogx"): "the rule is the derivative, extended to x = 0",
    "jax.scipy.special.logit": "the rule is the derivative 1 / (x(1 - x))",
    "jax.scipy.special.log_ndtr": "the rule is the derivative, stably written",
    jax_compat.private("numpy.linalg._slogdet_lu"): "the rule is tr(A⁻¹ Ȧ), the derivative",
    jax_compat.private("numpy.linalg._slogdet_qr"): "the rule is tr(A⁻¹ Ȧ), the derivative",
    jax_compat.private("numpy.linalg._det"): "Jacobi's formula",
    "optax.losses._classification.weighted_logsoftmax": "the derivative, extended to weight 0",
}
"""Functions whose custom rule is their derivative, with the reason for the trust."""

OPAQUE: dict[str, str] = {
    "custom_vjp_call": "a custom_vjp whose rule mixflow does not know",
    "custom_jvp_call": "a custom_jvp whose rule mixflow does not know",
    "custom_linear_solve": "a solve is only as exact as the solver that it was given",
    "call_hi_primitive": "a rule that came with its function, as custom_root's does",
    "linear_call": "a transpose that was given by hand",
    "custom_transpose_call": "a transpose that was given by hand",
}
"""Primitives whose derivative is what somebody said it is, with what to tell the user."""


@dataclass(frozen=True)
class Suspect:
    """A custom rule that may not be the derivative of its function.

    Arguments:
        name: the function's name, as `assume_symmetric` takes it.
        at: the user's `file:line` of the call, or of the function where JAX kept no traceback.
        why: one clause for the report.
    """

    name: str
    at: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.at}): {self.why}"


def _rule_at(path: str) -> Any:
    """The rule of a function on the list, or None where its module is absent or not in use."""
    module, _, name = path.rpartition(".")
    function = getattr(sys.modules.get(module), name, None)
    while function is not None and not hasattr(function, "jvp"):
        function = getattr(function, "__wrapped__", None)
    return getattr(function, "jvp", None)


def is_trusted(equation: Any) -> bool:
    """Whether a custom-rule equation carries a rule from the list."""
    if equation.primitive.name != "custom_jvp_call":
        return False
    rule = jax_compat.custom_rule(equation.params)
    return rule is not None and any(rule is _rule_at(path) for path in TRUSTED)


def custom_rules(jaxpr: Any) -> Iterator[Any]:
    """Every equation in a jaxpr that carries an untrusted rule, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name not in OPAQUE:
            for inner in nested_jaxprs(equation):
                yield from custom_rules(inner)
        elif not is_trusted(equation):
            yield equation


def find_suspects(jaxpr: Any) -> tuple[Suspect, ...]:
    """Every custom rule in a jaxpr that is not on the trusted list, each once.

    Those inside a nested symbolic derivative count: f is suspect when a loss inside it is.
    """
    return tuple(dict.fromkeys(map(_suspect, custom_rules(jaxpr))))


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


def _suspect(equation: Any) -> Suspect:
    name, place = equation.primitive.name, "<unknown>"
    if "call_jaxpr" in equation.params:
        name, place = jax_compat.rule_name(equation.params)
    called_at = jax_compat.source_line(equation.source_info)
    at = place if called_at == "<unknown>" else called_at
    advice = f"assume_symmetric=({name!r},) vouches for it"
    return Suspect(name, at, f"{OPAQUE[equation.primitive.name]}; {advice}")
