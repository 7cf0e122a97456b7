"""From a jaxpr to the IR, without loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Primitive, primitives
from xdsl.dialects.builtin import ModuleOp, UnitAttr
from xdsl.dialects.func import FuncOp
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.vjp_primitive import primal_p, vjp_p
from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.ir.dialects import mixflow as mf
from mixflow.compiler.ir.dialects.attributes import (
    AvalType,
    Constant,
    Equation,
    EquationAttr,
    FunctionAttr,
    ValueAttr,
)

REGIONS: dict[Primitive, tuple[type[Operation], tuple[str, ...]]] = {
    primitives.scan_p: (jx.ScanOp, ("jaxpr",)),
    primitives.while_p: (jx.WhileOp, ("cond_jaxpr", "body_jaxpr")),
    primitives.cond_p: (jx.CondOp, ("branches",)),
    primitives.jit_p: (jx.JitOp, ("jaxpr",)),
    primitives.remat_p: (jx.CheckpointOp, ("jaxpr",)),
}
"""Which primitives become operations with regions, and the parameters that those stand for."""


class UnsupportedProgram(Exception):
    """A program that the IR does not hold; it is run as it was captured."""


def import_jaxpr(
    closed: ClosedJaxpr,
    name: str = "main",
    *,
    differentiated: bool,
    with_effects: Sequence[dict[str, Any]] = (),
) -> ModuleOp:
    """Build a module with one function out of a closed jaxpr.

    Arguments:
        closed: the program, its derivatives symbolic.
        name: the function's name in the IR.
        differentiated: whether somebody may differentiate the program from outside.
        with_effects: the parameters of equations whose derivatives have effects.

    Raises:
        UnsupportedProgram: the program uses mutable references, whose effects are tied to
            variables.
    """
    body = _Importer(with_effects).region(closed)
    block = body.block
    yielded = block.last_op
    assert isinstance(yielded, jx.YieldOp)
    types = (list(block.arg_types), [value.type for value in yielded.operands])
    function = FuncOp(name, types, body)
    if differentiated:
        function.attributes["differentiated"] = UnitAttr()
    return ModuleOp([function])


def region_jaxprs(params: dict[str, Any], names: Iterable[str]) -> list[Any]:
    """The jaxprs in the named parameters, those of a tuple one by one."""
    found = [params[name] for name in names]
    return [one for item in found for one in (item if isinstance(item, tuple) else (item,))]


class _Importer:
    """Holds the types that were seen: equal ones become one attribute."""

    def __init__(self, with_effects: Sequence[dict[str, Any]]) -> None:
        self._types: dict[Any, AvalType] = {}
        self._with_effects = with_effects

    def region(self, jaxpr: Any) -> Region:
        """A region of one block out of a jaxpr, closed or open."""
        open_jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        block = Block(arg_types=[self.type(var.aval) for var in open_jaxpr.invars])
        values: dict[Any, SSAValue] = dict(zip(open_jaxpr.invars, block.args, strict=True))
        for var, const in zip(open_jaxpr.constvars, getattr(jaxpr, "consts", ()), strict=True):
            values[var] = self._value(block, jx.ConstantOp, const, var.aval)
        for eqn in open_jaxpr.eqns:
            op = self.operation(eqn, self._read(block, values, eqn.invars))
            block.add_op(op)
            values.update(zip(eqn.outvars, op.results, strict=True))
        results = self._read(block, values, open_jaxpr.outvars)
        block.add_op(jx.YieldOp.create(operands=results))
        return Region(block)

    def operation(self, eqn: JaxprEqn, operands: list[SSAValue]) -> Operation:
        """The operation for one equation."""
        kind, bodies, properties = jx.LeafOp, list[Region](), dict[str, Attribute]()
        if eqn.primitive in (primal_p, vjp_p):
            kind = mf.PrimalOp if eqn.primitive is primal_p else mf.VjpOp
            bodies = [self.region(eqn.params["function"].jaxpr)]
            properties["function"] = FunctionAttr(eqn.params["function"])
            if eqn.params.get("with_value"):
                properties["with_value"] = UnitAttr()
        elif eqn.primitive in REGIONS:
            kind, names = REGIONS[eqn.primitive]
            bodies = [self.region(nested) for nested in region_jaxprs(eqn.params, names)]
        ruled = any(eqn.params is one for one in self._with_effects)
        equation = EquationAttr(Equation.of(eqn, rules_have_effects=ruled))
        return kind.create(
            operands=operands,
            result_types=[self.type(var.aval) for var in eqn.outvars],
            properties={**properties, "equation": equation},
            regions=bodies,
        )

    def type(self, aval: Any) -> AvalType:
        """The IR's type for an abstract value."""
        if aval not in self._types:
            if jax_compat.is_ref(aval):
                raise UnsupportedProgram("the program uses mutable references")
            self._types[aval] = AvalType(aval)
        return self._types[aval]

    def _read(
        self, block: Block, values: dict[Any, SSAValue], atoms: Sequence[Any]
    ) -> list[SSAValue]:
        return [
            self._value(block, jx.LiteralOp, atom.val, atom.aval)
            if isinstance(atom, Literal)
            else values[atom]
            for atom in atoms
        ]

    def _value(self, block: Block, kind: type[Operation], value: Any, aval: Any) -> SSAValue:
        op = kind.create(
            result_types=[self.type(aval)], properties={"value": ValueAttr(Constant(value))}
        )
        block.add_op(op)
        return op.results[0]
