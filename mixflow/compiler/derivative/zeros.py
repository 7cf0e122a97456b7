"""Tangents that are zero by rule, and stay symbols.

Behind `stop_gradient` or `floor` nothing moves. JAX keeps no array of zeros for such a tangent, and
differentiates nothing that it would go through: no while loop, which has no reverse mode, and no
function in an argument in which it has no derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from mixflow.compiler.jaxprs.values import Values


def symbolic_zeros(values: Values) -> list[Any]:
    """For each value the tangent of one that does not move."""
    return [SymbolicZero(jax.typeof(value).to_tangent_aval()) for value in values]


def push_forward(
    function: Callable[..., Values], primals: Values, tangents: Values
) -> tuple[Values, Values, list[bool]]:
    """`jax.jvp`, which makes arrays of zeros, and for each output whether it has another tangent.

    Arguments:
        function: of flat arrays, to a list of arrays.
        primals: its arguments.
        tangents: one for each of them.
    """
    follows: list[bool] = []
    watch = jax.custom_jvp(lambda *outputs: outputs)

    def see(outputs: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
        follows[:] = [not isinstance(tangent, SymbolicZero) for tangent in tangents]
        return outputs, tangents

    watch.defjvp(see, symbolic_zeros=True)

    def watched(*primals: Any) -> Values:
        outputs = function(*primals)
        follows[:] = [False] * len(outputs)
        watch(*outputs)  # JAX calls the rule where any of them has a tangent
        return outputs

    outputs, pushed = jax.jvp(watched, primals, tangents)
    return outputs, pushed, follows
