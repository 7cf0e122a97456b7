"""The `jaxpr` dialect: any JAX program, operation by equation, without loss.

A leaf equation is one generic `jaxpr.eqn`; what passes look into (scan, while, cond, jit,
checkpoint) has an operation of its own whose regions are the nested jaxprs. The JAX primitive,
its parameters, effects, context and source line travel with every operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from xdsl.dialects.builtin import DenseArrayBase, StringAttr, UnitAttr, i1
from xdsl.ir import Dialect, Operation, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
    var_region_def,
    var_result_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import (
    EffectInstance,
    IsolatedFromAbove,
    IsTerminator,
    MemoryEffect,
    MemoryEffectKind,
    Pure,
)

from mixflow.compiler import jax_compat
from mixflow.compiler.ir.dialects.attributes import (
    UNPARSABLE,
    AvalType,
    Equation,
    EquationAttr,
    ValueAttr,
)

_EFFECT = frozenset({EffectInstance(MemoryEffectKind.WRITE)})


class EquationEffects(MemoryEffect):
    """An operation has side effects where its equation has, or derivatives of it have."""

    @classmethod
    def get_effects(cls, op: Operation) -> AbstractSet[EffectInstance]:
        equation = op.properties.get("equation")
        if not isinstance(equation, EquationAttr):
            return frozenset()
        info = equation.data
        return _EFFECT if info.effects or info.rules_have_effects else frozenset()


class ReadableOp(IRDLOperation):
    """An operation that prints as `name operands {what} regions : types  loc(file:line)`."""

    def described(self) -> str:
        """What stands between the operation's name and its operands."""
        return ""

    @property
    def source(self) -> str:
        """The user's `file:line`, or "<unknown>"."""
        return "<unknown>"

    @classmethod
    def parse(cls, parser: Parser) -> Any:
        parser.raise_error(UNPARSABLE)

    def print(self, printer: Printer) -> None:
        printer.print_string(f" {self.described()}".rstrip())
        if self.operands:
            printer.print_string("(")
            printer.print_list(self.operands, printer.print_ssa_value)
            printer.print_string(")")
        if "remarks" in self.attributes:
            printer.print_string(" ")
            printer.print_attribute(self.attributes["remarks"])
        for region in self.regions:
            printer.print_string(" ")
            printer.print_region(region)
        if self.results:
            types = ", ".join(str(result.type) for result in self.results)
            printer.print_string(f" : {types}")
        if self.source != "<unknown>":
            printer.print_string(f"  loc({self.source})")


class EquationOp(ReadableOp):
    """Common to the operations that stand for one JAX equation."""

    equation = prop_def(EquationAttr)

    @property
    def eqn(self) -> Equation:
        """The equation apart from its operands."""
        return self.equation.data

    @property
    def params(self) -> dict[str, Any]:
        """The JAX equation's parameters."""
        return self.eqn.params

    @property
    def source(self) -> str:
        return self.eqn.location


@irdl_op_definition
class LeafOp(EquationOp):
    """One equation that passes do not look into."""

    name = "jaxpr.eqn"
    inputs = var_operand_def(AvalType)
    outputs = var_result_def(AvalType)
    traits = traits_def(EquationEffects())

    def described(self) -> str:
        return str(self.eqn)


class RegionOp(EquationOp):
    """Common to the operations whose regions are nested jaxprs."""

    inputs = var_operand_def(AvalType)
    outputs = var_result_def(AvalType)
    bodies = var_region_def()

    def described(self) -> str:
        name = self.params.get("name")
        return f"@{name}" if name else ""


@irdl_op_definition
class ScanOp(RegionOp):
    """`jax.lax.scan`: operands and block arguments are constants, carry, and slices."""

    name = "jaxpr.scan"
    traits = traits_def(EquationEffects(), IsolatedFromAbove())

    @property
    def num_consts(self) -> int:
        return jax_compat.scan_layout(self.params)[0]

    @property
    def num_carry(self) -> int:
        return jax_compat.scan_layout(self.params)[1]

    @property
    def length(self) -> int:
        """The number of steps."""
        return self.params["length"]

    def described(self) -> str:
        return f"{self.length} steps, {self.num_consts} consts, {self.num_carry} carried "


@irdl_op_definition
class WhileOp(RegionOp):
    """`jax.lax.while_loop`: operands are the condition's constants, the body's, and the carry."""

    name = "jaxpr.while"
    traits = traits_def(EquationEffects(), IsolatedFromAbove())


@irdl_op_definition
class CondOp(RegionOp):
    """`jax.lax.cond` and `switch`: the first operand chooses the branch."""

    name = "jaxpr.cond"
    traits = traits_def(EquationEffects(), IsolatedFromAbove())


@irdl_op_definition
class JitOp(RegionOp):
    """A nested `jax.jit`."""

    name = "jaxpr.jit"
    traits = traits_def(EquationEffects(), IsolatedFromAbove())


@irdl_op_definition
class CheckpointOp(ReadableOp):
    """`jax.checkpoint`: the user's (with its equation), or one that a pass has made.

    A pass gives its own name, and those of the values that are saved; all else is rerun. One
    that stands `inline`, with its recomputation in the same straight line, needs barriers: for all
    of its inputs, or for those that `barriers` says.
    """

    name = "jaxpr.checkpoint"
    inputs = var_operand_def(AvalType)
    outputs = var_result_def(AvalType)
    body = region_def("single_block")
    equation = opt_prop_def(EquationAttr)
    saved = opt_prop_def(StringAttr)
    made_by = opt_prop_def(StringAttr)
    inline = opt_prop_def(UnitAttr)
    barriers = opt_prop_def(DenseArrayBase.constr(i1))
    traits = traits_def(EquationEffects(), IsolatedFromAbove())

    def __init__(self, inputs: Sequence[SSAValue], body: Region, types: Sequence[Any]) -> None:
        super().__init__(operands=[inputs], result_types=[types], regions=[body])

    def described(self) -> str:
        return f"saving {self.saved.data} " if self.saved else "inline " if self.inline else ""

    @property
    def source(self) -> str:
        return self.equation.data.location if self.equation else "<unknown>"


class _ValueOp(ReadableOp):
    value = prop_def(ValueAttr)
    output = result_def(AvalType)
    traits = traits_def(Pure())

    def described(self) -> str:
        return f"{self.value.data} "


@irdl_op_definition
class LiteralOp(_ValueOp):
    """A scalar that stands in the jaxpr itself."""

    name = "jaxpr.literal"


@irdl_op_definition
class ConstantOp(_ValueOp):
    """An array that a closed jaxpr carries along."""

    name = "jaxpr.constant"


@irdl_op_definition
class YieldOp(ReadableOp):
    """Ends a region with the values that it gives back."""

    name = "jaxpr.yield"
    outputs = var_operand_def(AvalType)
    traits = traits_def(IsTerminator())


Jaxpr = Dialect(
    "jaxpr",
    [
        LeafOp,
        ScanOp,
        WhileOp,
        CondOp,
        JitOp,
        CheckpointOp,
        LiteralOp,
        ConstantOp,
        YieldOp,
    ],
    [AvalType, EquationAttr, ValueAttr],
)
