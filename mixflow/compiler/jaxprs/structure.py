"""A key for each program, the same for programs that do the same.

Code that is unrolled in Python has one function many times, each time as another object: the loss
of each of 300 gradient steps. What is found out about one of them is remembered by this key, and
holds for all.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from mixflow.compiler import jax_compat

_RULES = {"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"}
"""The parameters of a call of a custom rule that hold its functions."""

_STORES = {"out_trees"}
"""A parameter in which JAX notes what such a rule returns."""


@dataclass(frozen=True, eq=False)
class _Same:
    """Compares what cannot be compared, such as an array, as one object or another."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys of one kind. Names of variables and what debuggers read are no part of any.

    Arguments:
        lines: whether programs are different that were written at other lines, or that call a
            custom rule from another place.
    """

    lines: bool
    _known: WeakKeyDictionary[ClosedJaxpr, Hashable] = field(default_factory=WeakKeyDictionary)

    def of_program(self, closed: ClosedJaxpr) -> Hashable:
        """The key of a program."""
        if closed not in self._known:
            arrays = tuple(map(_Same, closed.consts))
            self._known[closed] = self._of_jaxpr(closed.jaxpr), arrays
        return self._known[closed]

    def of_equation(self, eqn: Any) -> Hashable:
        """The key of an equation, whatever variables it reads and defines."""
        read = tuple(
            _of_literal(atom) if isinstance(atom, Literal) else (atom.aval, None)
            for atom in eqn.invars
        )
        return self._of_equation(eqn, read, tuple(var.aval for var in eqn.outvars))

    def of_params(self, params: Mapping[str, Any]) -> Hashable:
        """The key of an equation's parameters."""
        if self.lines or _RULES.isdisjoint(params):
            return self.of_value(params)
        rules = {
            name: jax_compat.rule_parts(params[name]) for name in sorted(_RULES & params.keys())
        }
        # A function of the user's is itself alone, whatever its `==` says.
        functions = {name: _Same(function) for name, (function, _) in rules.items()}
        calls = {f"{name} call": call for name, (_, call) in rules.items()}
        others = {name: one for name, one in params.items() if name not in _RULES | _STORES}
        return self.of_value({**functions, **calls, **others})

    def _of_equation(self, eqn: Any, read: Hashable, made: Hashable) -> Hashable:
        source = eqn.source_info.traceback if self.lines else None
        params, effects = self.of_params(eqn.params), frozenset(eqn.effects)
        return eqn.primitive, read, params, made, effects, _of_object(eqn.ctx), source

    def _of_jaxpr(self, jaxpr: Jaxpr) -> Hashable:
        numbers: dict[Var, int] = {}

        def born(variables: Sequence[Var]) -> Hashable:
            for var in variables:
                numbers[var] = len(numbers)
            return tuple(var.aval for var in variables)

        def read(atoms: Sequence[Any]) -> Hashable:
            return tuple(
                _of_literal(atom) if isinstance(atom, Literal) else numbers[atom] for atom in atoms
            )

        inputs = born(jaxpr.constvars), born(jaxpr.invars)
        equations = tuple(
            self._of_equation(eqn, read(eqn.invars), born(eqn.outvars)) for eqn in jaxpr.eqns
        )
        return inputs, equations, read(jaxpr.outvars)

    def of_value(self, value: Any) -> Hashable:
        """The key of any value. `0.0` and `-0.0`, `1` and `True` are equal to Python, not here."""
        match value:
            case bool() | int() | float() | complex() | np.generic():
                return type(value), repr(value)
            case tuple() | list():
                return type(value), tuple(map(self.of_value, value))
            case Mapping():
                return tuple((name, self.of_value(one)) for name, one in value.items())
            case Jaxpr():
                return self._of_jaxpr(value)
            case ClosedJaxpr():
                return self.of_program(value)
            case _:
                return _of_object(value)


def _of_literal(atom: Any) -> Hashable:
    return atom.aval, np.asarray(atom.val).tobytes()


def _of_object(value: Any) -> Hashable:
    own = getattr(value, "structure_key", None)
    if own is not None:
        return own
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


_WRITTEN = Keys(lines=True)
ALIKE = Keys(lines=False)
"""The same for programs that compute the same, wherever that was written."""


def structure_of(closed: ClosedJaxpr) -> Hashable:
    """The key of a program, the same for those that were written at the same lines."""
    return _WRITTEN.of_program(closed)


def kind_of(eqn: Any) -> Hashable:
    """The key of an equation, whatever variables it reads, and written at the same line."""
    return _WRITTEN.of_equation(eqn)
