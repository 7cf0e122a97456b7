"""The custom rules that are trusted to be true derivatives, each with its reason."""

from __future__ import annotations

import sys
from typing import Any

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
