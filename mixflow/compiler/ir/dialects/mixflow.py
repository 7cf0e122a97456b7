"""The `mixflow` dialect: derivatives that are still symbolic."""

from __future__ import annotations

from xdsl.dialects.builtin import StringAttr, UnitAttr
from xdsl.ir import Dialect, SSAValue
from xdsl.irdl import (
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import IsolatedFromAbove, Pure

from mixflow.compiler.derivative.differentiand import Differentiand
from mixflow.compiler.ir.dialects.attributes import AvalType, FunctionAttr
from mixflow.compiler.ir.dialects.jaxpr import EquationOp, ReadableOp


class DerivativeOp(EquationOp):
    """Common to the operations on a differentiated function f, whose jaxpr is the region."""

    inputs = var_operand_def(AvalType)
    outputs = var_result_def(AvalType)
    function = prop_def(FunctionAttr)
    body = region_def("single_block")

    @property
    def differentiand(self) -> Differentiand:
        """What is differentiated, and how far that is sound."""
        return self.function.data

    @property
    def point_start(self) -> int:
        """The first operand (and block argument) that belongs to x."""
        return self.differentiand.num_consts

    @property
    def point_stop(self) -> int:
        """The first operand that is a cotangent."""
        return self.differentiand.num_consts + self.differentiand.num_points

    def described(self) -> str:
        return "suspect " if self.differentiand.suspects else ""


@irdl_op_definition
class PrimalOp(DerivativeOp):
    """`primal[f](c, x)`: the value of a function whose pullback somebody holds."""

    name = "mixflow.primal"
    traits = traits_def(Pure(), IsolatedFromAbove())


@irdl_op_definition
class VjpOp(DerivativeOp):
    """`vjp[f](c, x, w)`: x̄ = (∂f/∂x)ᵀ w, after f's value if that is asked for too.

    Its `rule` says how its own pullback is taken: "symmetric" for the symmetric rule, "transposed"
    for the transposed rule; without one, as JAX takes it.
    """

    name = "mixflow.vjp"
    with_value = opt_prop_def(UnitAttr)
    rule = opt_prop_def(StringAttr)
    traits = traits_def(Pure(), IsolatedFromAbove())

    @property
    def gradients(self) -> tuple[SSAValue, ...]:
        """The results x̄."""
        return tuple(self.results[len(self.results) - self.differentiand.num_points :])

    def described(self) -> str:
        words = ["with value"] if self.with_value else []
        words += [f"{self.rule.data} rule"] if self.rule else []
        return super().described() + (f"[{', '.join(words)}] " if words else "")


@irdl_op_definition
class NameOp(ReadableOp):
    """Names a value, so that a checkpoint around it can save it."""

    name = "mixflow.name"
    input = operand_def(AvalType)
    output = result_def(AvalType)
    label = prop_def(StringAttr)
    traits = traits_def(Pure())

    def __init__(self, value: SSAValue, label: str) -> None:
        super().__init__(
            operands=[value], result_types=[value.type], properties={"label": StringAttr(label)}
        )

    def described(self) -> str:
        return f'"{self.label.data}" '


Mixflow = Dialect("mixflow", [PrimalOp, VjpOp, NameOp], [FunctionAttr])
