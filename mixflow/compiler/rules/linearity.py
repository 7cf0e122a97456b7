"""Whether a custom derivative rule is linear, proved by a walk over its program.

The transposed rule transposes a custom rule, and `jax.linear_transpose` checks nothing: from
`g + 0.1 * x`, or from a gradient that is rounded to integers, it makes a wrong transposition
without a word. So each value of the rule's program is told to be one of four:

    zero      0 for certain
    constant  the same for every cotangent (in a custom_jvp's rule: for every tangent)
    linear    a linear map of the cotangents
    other     anything else

and a rule is linear where each result of it is linear or zero. Example: in `lambda x, g: (g *
jnp.cos(x),)`, `jnp.cos(x)` is constant, `g` linear, and the product of the two linear. In
`jnp.where(jnp.abs(g) < 1, g, 0)`, what is chosen depends on g, so the result is other.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.interpretation import Interpretation
from mixflow.compiler.jaxprs.values import is_inexact, merge, one_equation, partition, spec_of
from mixflow.compiler.primitives import ALL, Operands, row_of


class Degree(enum.Enum):
    """How a value depends on the cotangents."""

    ZERO = enum.auto()
    CONSTANT = enum.auto()
    LINEAR = enum.auto()
    OTHER = enum.auto()


_FIXED = (Degree.ZERO, Degree.CONSTANT)


class Linearity(Interpretation[Degree]):
    """The walk. `why` says which equation was the first that is not linear; None where all are."""

    def __init__(self) -> None:
        self.why: str | None = None

    def constant(self, value: Any) -> Degree:
        is_zero = value is not None and not np.any(np.asarray(value))
        return Degree.ZERO if is_zero else Degree.CONSTANT

    def join(self, one: Degree, other: Degree) -> Degree:
        kinds = {one, other}
        if len(kinds) == 1:
            return one
        if Degree.ZERO in kinds:
            return (kinds - {Degree.ZERO}).pop()
        return Degree.OTHER

    def choice(self, eqn: Any, chooser: Degree, results: list[Degree]) -> list[Degree]:
        if chooser not in _FIXED:
            return self._other(eqn, "it chooses by the cotangent")
        if eqn.primitive.name == "while" and Degree.LINEAR in results:
            return self._other(eqn, "JAX cannot transpose a while loop")
        return results

    def leaf(self, eqn: Any, args: list[Degree]) -> list[Degree]:
        if all(arg in _FIXED for arg in args):
            return [_fixed(eqn, args)] * len(eqn.outvars)
        if Degree.OTHER in args:
            return [Degree.OTHER] * len(eqn.outvars)
        if eqn.primitive.name == "optimization_barrier":
            return args  # each result is its operand
        if all(is_inexact(var.aval) for var in eqn.outvars):
            operand_sets = _linear_operands(eqn)
            if any(_is_linear_in(operands, args) for operands in operand_sets):
                return [Degree.LINEAR] * len(eqn.outvars)
        return self._other(eqn, "it is not linear in the cotangent")

    def _other(self, eqn: Any, why: str) -> list[Degree]:
        if self.why is None:
            self.why = f"{why} ({eqn.primitive.name} at {jax_compat.source_line(eqn.source_info)})"
        return [Degree.OTHER] * len(eqn.outvars)


def _is_linear_in(operands: Operands, args: list[Degree]) -> bool:
    """Whether the operands of one set, and no others, depend on the cotangent.

    A constant among them makes the result affine: `add` is linear in both operands together, so
    `g + 0.1 * x` is not linear in g alone.
    """
    positions = range(len(args))
    chosen = positions[operands] if isinstance(operands, slice) else operands
    inside = [args[position] for position in chosen]
    outside = [args[position] for position in positions if position not in chosen]
    return Degree.CONSTANT not in inside and Degree.LINEAR not in outside


def _fixed(eqn: Any, args: list[Degree]) -> Degree:
    """Zero stays zero through what is linear in all operands, and through a product with it."""
    linear = _linear_operands(eqn)
    if ALL in linear and args and all(arg is Degree.ZERO for arg in args):
        return Degree.ZERO
    return Degree.CONSTANT


def _linear_operands(eqn: Any) -> Sequence[Operands]:
    """The sets of operands that an equation is linear in, those of mixflow's own included."""
    function = eqn.params.get("function")
    if not hasattr(function, "carries"):
        return _of_solve(eqn) if eqn.primitive.name == "custom_linear_solve" else row_of(eqn).linear
    if function.custom or eqn.primitive.name == "mixflow_primal":
        return ()
    if eqn.primitive.name == "mixflow_pushforward":
        return (slice(len(eqn.params["perturbed"]), None),)
    if eqn.params["with_value"]:
        return ()
    return (slice(function.num_consts + function.num_points, None),)


def _of_solve(eqn: Any) -> Sequence[Operands]:
    """A solve is linear in its right-hand side; JAX transposes it by the solver that was given."""
    if not is_transposable_solve(eqn):
        return ()
    return (slice(sum(eqn.params["const_lengths"]), None),)


def is_transposable_solve(eqn: Any) -> bool:
    """Whether a `custom_linear_solve` has a solver of its own for the transposed system.

    Not with `symmetric=True`, where nobody has shown that the matrix is symmetric: JAX takes the
    same solver for both then, so that forward mode and reverse mode may disagree.
    """
    jaxprs = eqn.params["jaxprs"]
    return jaxprs.transpose_solve is not None and jaxprs.transpose_solve is not jaxprs.solve


def why_not_linear(eqn: Any) -> str | None:
    """Why a custom rule is not for the transposed rule; None where it is proved to be linear.

    Arguments:
        eqn: a `custom_jvp_call` or a `custom_vjp_call`.
    """
    if eqn.params.get("symbolic_zeros"):
        return "its rule looks at which cotangents are zero"
    try:
        rule = rule_program(eqn)
    except Exception as error:  # the rule is the user's: whatever it raises
        return f"its rule cannot be looked at ({type(error).__name__})"
    if not all(map(jax_compat.is_axis_effect, rule.jaxpr.effects)):
        return "its rule has effects"
    if _holds_remat_opt(rule):
        return "its rule was given with optimize_remat, which JAX cannot push forward"
    return _why_not_linear(rule)


def optimizes_remat(eqn: Any) -> bool:
    """Whether a custom rule was given with `optimize_remat`, as a custom_vjp's alone can be."""
    if eqn.primitive.name != "custom_vjp_call":
        return False
    try:
        return _holds_remat_opt(rule_program(eqn))
    except Exception:  # the rule is the user's: whatever it raises
        return False


def _holds_remat_opt(rule: RuleProgram) -> bool:
    return any(one.primitive.name == "remat_opt" for one in rule.jaxpr.eqns)


def _why_not_linear(rule: RuleProgram) -> str | None:
    walk = Linearity()
    num_fixed = len(rule.jaxpr.in_avals) - rule.num_linear
    inputs = [Degree.CONSTANT] * num_fixed + [Degree.LINEAR] * rule.num_linear
    results = walk.program(rule.jaxpr, inputs)
    values, linear = results[: rule.num_values], results[rule.num_values :]
    if any(degree not in _FIXED for degree in values):
        return "its value depends on the tangent"
    if Degree.OTHER in linear:
        return f"its rule is not linear: {walk.why}" if walk.why else "its rule is not linear"
    if Degree.CONSTANT in linear:
        return "its rule is not linear: it returns something that the cotangent is not in"
    return None


@dataclass(frozen=True)
class RuleProgram:
    """A custom rule, traced.

    Arguments:
        jaxpr: from the arguments and then the cotangents (of a custom_jvp: the tangents), to the
            values that the rule computes and then what has to be linear.
        num_linear: the number of cotangents or tangents.
        num_values: the number of values.
    """

    jaxpr: ClosedJaxpr
    num_linear: int
    num_values: int


def rule_program(eqn: Any) -> RuleProgram:
    """The rule of an equation with a custom derivative. Any other equation has an empty one.

    Arguments:
        eqn: of any kind.

    Raises:
        Whatever the rule raises.
    """
    if eqn.primitive.name == "custom_vjp_call":
        return _rule_of_vjp(eqn)
    if eqn.primitive.name == "custom_jvp_call":
        return _rule_of_jvp(eqn)
    return RuleProgram(jax.make_jaxpr(lambda: ())(), 0, 0)


def _rule_of_vjp(eqn: Any) -> RuleProgram:
    """A custom_vjp's rules as one program: of the arguments and the cotangents, to the gradient."""
    call = one_equation(eqn)
    args = [spec_of(var.aval) for var in eqn.invars]
    moves = [is_inexact(var.aval) for var in eqn.invars]
    moves = [move and position >= eqn.params["num_consts"] for position, move in enumerate(moves)]
    counts = [is_inexact(var.aval) for var in eqn.outvars]
    cotangents = [
        jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)
        for var in partition(counts, eqn.outvars)[0]
    ]

    def rule(args: list[Any], cotangents: list[Any]) -> Any:
        moving, fixed = partition(moves, args)

        def carried(*moving: Any) -> Any:
            return partition(counts, call(*merge(moves, moving, fixed)))

        _, pullback, _ = jax_compat.VJP_OF_JAX(carried, *moving, has_aux=True)
        return pullback(cotangents)

    return RuleProgram(jax.make_jaxpr(rule)(args, cotangents), len(cotangents), 0)


def _rule_of_jvp(eqn: Any) -> RuleProgram:
    """A custom_jvp's rule: of the arguments and their tangents, to the value and its tangents."""
    call = one_equation(eqn)
    args = [spec_of(var.aval) for var in eqn.invars]
    moves = [is_inexact(var.aval) for var in eqn.invars]
    counts = [is_inexact(var.aval) for var in eqn.outvars]
    tangents = partition(moves, args)[0]

    def rule(args: list[Any], tangents: list[Any]) -> Any:
        moving, fixed = partition(moves, args)
        values, pushed = jax.jvp(
            lambda *moving: call(*merge(moves, moving, fixed)), moving, tangents
        )
        return values, partition(counts, pushed)[0]

    return RuleProgram(jax.make_jaxpr(rule)(args, tangents), len(tangents), len(eqn.outvars))
