"""Attributes that carry JAX's own objects through the IR, and print short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Primitive
from xdsl.ir import Data, SSAValue, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.subprograms import equations_in, nested_jaxprs

UNPARSABLE = "holds a JAX object: it is printed, and not read from text"
_LONGEST_PARAM = 60


@irdl_attr_definition
class AvalType(TypeAttribute, Data[Any]):
    """The type of a value: JAX's abstract value, printed as in `f32[4,8]`."""

    name = "jaxpr.aval"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Any:
        parser.raise_error(UNPARSABLE)

    def print_parameter(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(str(self))

    def __str__(self) -> str:
        return self.data.str_short(short_dtypes=True)


def aval_of(value: SSAValue) -> Any:
    """JAX's abstract value for a value of the IR."""
    assert isinstance(value.type, AvalType)
    return value.type.data


@dataclass(frozen=True, eq=False)
class Equation:
    """What an equation is, apart from the values that it reads and writes.

    Two are equal when they compute the same of the same operands, and so do their derivatives:
    primitive, parameters and context. Parameters that Python cannot compare are compared by
    identity. What holds a `custom_vjp` is equal to itself alone: `cse` makes one of two equal ones,
    its cotangent is then the sum of theirs, and a backward rule that clips is no sum.
    """

    primitive: Primitive
    params: dict[str, Any]
    effects: frozenset[Any]
    source_info: Any
    ctx: Any
    rules_have_effects: bool = False
    """Whether derivatives of it have effects that the equation itself has not."""

    @staticmethod
    def of(eqn: JaxprEqn, *, rules_have_effects: bool = False) -> Equation:
        """Take an equation out of its jaxpr."""
        effects = frozenset(eqn.effects)
        return Equation(
            eqn.primitive, eqn.params, effects, eqn.source_info, eqn.ctx, rules_have_effects
        )

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Equation) or self.primitive is not other.primitive:
            return False
        return self.ctx is other.ctx and self._key == other._key and not self._has_vjp_rule

    def __hash__(self) -> int:
        return hash((self.primitive, self._key))

    @property
    def _has_vjp_rule(self) -> bool:
        inside = (eqn for jaxpr in nested_jaxprs(self) for eqn in equations_in(jaxpr))
        return any(eqn.primitive.name == "custom_vjp_call" for eqn in (self, *inside))

    @property
    def _key(self) -> tuple[Any, ...]:
        return tuple((name, _hashable(value)) for name, value in sorted(self.params.items()))

    @property
    def location(self) -> str:
        """The user's `file:line`, or "<unknown>"."""
        return jax_compat.source_line(self.source_info)

    def __str__(self) -> str:
        params = [f"{name}={value}" for name, value in self.params.items() if _is_short(value)]
        return f"{self.primitive.name} {{{', '.join(params)}}}" if params else self.primitive.name


@dataclass(frozen=True, eq=False)
class Constant:
    """A literal or constant array. Scalars are equal when their bits are: 0.0 is not -0.0."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        value = self.value
        is_scalar = isinstance(value, (bool, int, float, complex, np.ndarray, np.generic))
        if not is_scalar or np.ndim(value):
            return (id(value),)
        array = np.asarray(value)
        return (type(value), array.dtype, array.tobytes())

    def __str__(self) -> str:
        return str(self.value) if not np.ndim(self.value) else f"<{np.shape(self.value)}>"


def _hashable(value: Any) -> Any:
    """A key that is equal for equal parameters: type and value, or identity."""
    if isinstance(value, tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, (float, complex)):
        return (type(value), repr(value))
    if isinstance(value, np.generic):
        return (value.dtype, value.tobytes())
    try:
        hash(value)
    except TypeError:
        return id(value)
    return (type(value), value)


def _is_short(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, tuple)) and len(str(value)) <= _LONGEST_PARAM


class _Payload(Data[Any]):
    """A Python object that travels with the IR; it is printed and cannot be parsed."""

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Any:
        parser.raise_error(UNPARSABLE)

    def print_parameter(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(str(self.data))


@irdl_attr_definition
class EquationAttr(_Payload):
    """The `Equation` behind an operation."""

    name = "jaxpr.equation"


@irdl_attr_definition
class FunctionAttr(_Payload):
    """The `Differentiand` behind a symbolic derivative, shared by its value and pullbacks."""

    name = "mixflow.function"


@irdl_attr_definition
class ValueAttr(_Payload):
    """The `Constant` behind a literal or a constant."""

    name = "jaxpr.value"
