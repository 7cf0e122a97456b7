"""What operations do, as numbers: the same for those that do the same, whatever they read."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params
from xdsl.ir import Operation, Region, SSAValue

from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.ir.dialects import mixflow as mf
from mixflow.compiler.ir.importer import REGIONS
from mixflow.compiler.jaxprs.structure import ALIKE
from mixflow.compiler.rules.suspects import custom_rules, is_custom

_PLACES = {
    "slice": ("start_indices", "limit_indices"),
    "squeeze": (),
    "unstack": (),
    "split": (),
}
"""What cuts a part out of an array, and the parameters that say where the part lies."""

_OF_JAX = {"equation", "function"}
"""The properties that hold objects of JAX's. The function of a derivative is its region, too."""

_LOOPS_NEED_TRUE_RULES = jax.__version_info__ < (0, 12)
"""Earlier versions differentiate a rule that is no true derivative otherwise where it stands in a
loop, in second order."""


def is_cut(op: Operation) -> bool:
    """Whether an operation cuts a part out of an array."""
    return isinstance(op, jx.LeafOp) and op.eqn.primitive.name in _PLACES


class Kinds:
    """The numbers, each found once. Where an operation was written is no part of its kind."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._known: dict[Operation, int] = {}

    def rough(self, op: Operation) -> int:
        """The operation's number, if it does not count which part of an array it cuts out."""
        if op not in self._known:
            self._known[op] = self._number(self._kind(op, cuts_alike=True))
        return self._known[op]

    def exact(self, op: Operation) -> int:
        """The operation's number."""
        if is_cut(op):
            return self._number(self._kind(op, cuts_alike=False))
        return self.rough(op)

    def _number(self, kind: Hashable) -> int:
        return self._numbers.setdefault(kind, len(self._numbers))

    def _kind(self, op: Operation, *, cuts_alike: bool) -> Hashable:
        if isinstance(op, (jx.LiteralOp, jx.ConstantOp)):
            return type(op), op.value, op.output.type
        if jx.EquationEffects.get_effects(op) or _is_wrong_in_loops(op):
            return object()  # it is to stay where it is, so it is like no other
        types = tuple(op.operand_types), tuple(op.result_types)
        regions = tuple(map(self._region, op.regions))
        return type(op), types, regions, _settings(op), _equation(op, cuts_alike)

    def _region(self, region: Region) -> int:
        values: dict[SSAValue, int] = {}
        lines = list[Hashable]()
        for arg in region.block.args:
            values[arg] = len(values)
        for op in region.block.ops:
            read = tuple(values[value] for value in op.operands)
            lines.append((self._number(self._kind(op, cuts_alike=False)), read))
            for result in op.results:
                values[result] = len(values)
        return self._number((tuple(region.block.arg_types), tuple(lines)))


def _is_wrong_in_loops(op: Operation) -> bool:
    """Whether JAX may differentiate an operation otherwise where it stands in a loop."""
    if not _LOOPS_NEED_TRUE_RULES or not isinstance(op, jx.LeafOp):
        return False
    inside = jaxprs_in_params(op.params)
    return is_custom(op.eqn) or any(any(custom_rules(jaxpr)) for jaxpr in inside)


def _settings(op: Operation) -> Hashable:
    """What an operation says of itself, beside its equation."""
    own = [(name, one) for name, one in sorted(op.properties.items()) if name not in _OF_JAX]
    if not isinstance(op, mf.DerivativeOp):
        return tuple(own)
    f = op.differentiand
    return *own, f.num_consts, f.carries, f.chosen, f.custom, f.retyped


def _equation(op: Operation, cuts_alike: bool) -> Hashable:
    equation = op.properties.get("equation")
    if not isinstance(equation, jx.EquationAttr):
        return None
    info = equation.data
    left_out: Sequence[str] = REGIONS[info.primitive][1] if info.primitive in REGIONS else ()
    if cuts_alike:
        left_out = (*left_out, *_PLACES.get(info.primitive.name, ()))
    params: dict[str, Any] = {
        name: one for name, one in info.params.items() if name not in (*left_out, "function")
    }
    return info.primitive, ALIKE.of_params(params), ALIKE.of_value(info.ctx)
