"""Which equations of a program the tangents of some of its inputs reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

from jax.extend.core import Jaxpr, Literal, Var

from mixflow.compiler.jaxprs.interpretation import Interpretation
from mixflow.compiler.jaxprs.values import is_inexact
from mixflow.compiler.primitives import row_of


class Reach(Interpretation[int]):
    """The walk. A value is reached where it has a tangent that need not be zero.

    A fact is the set of inputs whose tangents reach the value, as the bits of a number: 1 or True
    for the one set that most callers ask of, 1, 2, 4, … to tell inputs apart.

    `found` collects the reached equations that have no program inside, and the while loops, in
    order, each once; `resting` those that are not reached where they are called; `once` those that
    are reached in an operand in which they can be differentiated only once.
    """

    def __init__(self) -> None:
        self._found: dict[int, Any] = {}
        self.resting = list[Any]()
        self.once = list[Any]()

    @property
    def found(self) -> list[Any]:
        """The equations that were reached."""
        return list(self._found.values())

    def constant(self, value: Any) -> int:
        del value
        return False

    def join(self, one: int, other: int) -> int:
        return one | other

    def equation(self, eqn: Any, args: list[int]) -> list[int]:
        results = super().equation(eqn, args)
        if eqn.primitive.name == "while" and any(results):
            self._found[id(eqn)] = eqn  # it has no reverse mode
        return results

    def leaf(self, eqn: Any, args: list[int]) -> list[int]:
        if not any(args):
            self.resting.append(eqn)
            return [False] * len(eqn.outvars)
        if eqn.primitive.name == "stop_gradient":
            return [False] * len(eqn.outvars)
        if eqn.primitive.name == "optimization_barrier":
            return args  # each result is its operand
        function = eqn.params.get("function")
        if hasattr(function, "carries"):
            self._derivative(eqn, function, args)
        else:
            self._found[id(eqn)] = eqn
            if any(args[position] for position in row_of(eqn).once):
                self.once.append(eqn)
        reached_by = reduce(or_, args)
        return [reached_by if is_inexact(var.aval) else False for var in eqn.outvars]

    def _derivative(self, eqn: Any, function: Any, args: list[int]) -> None:
        """A symbolic derivative differentiates its function in all of the point by itself."""
        consts = args[: function.num_consts]
        point = args[function.num_consts : function.num_consts + function.num_points]
        if eqn.primitive.name != "mixflow_primal":
            point = [True] * function.num_points
        self.program(function.jaxpr, [*consts, *point])


def reach_of(jaxpr: Any, moving: Sequence[bool]) -> Reach:
    """The walk over a program, done.

    Arguments:
        jaxpr: closed or open.
        moving: for each input, whether it has a tangent. Integers have none.
    """
    reach = Reach()
    reach.program(jaxpr, _flags(jaxpr, moving))
    return reach


def reached_equations(jaxpr: Any, moving: Sequence[bool]) -> list[Any]:
    """The equations without a program inside, and the while loops, that tangents reach.

    Arguments:
        jaxpr, moving: as for `reach_of`.
    """
    return reach_of(jaxpr, moving).found


def reached_variables(jaxpr: Any, moving: Sequence[bool]) -> set[Any]:
    """The variables of a program itself, not of those inside it, that tangents reach.

    Arguments:
        jaxpr: closed or open.
        moving: for each input, whether it has a tangent. Integers have none.
    """
    opened = getattr(jaxpr, "jaxpr", jaxpr)
    flags = _flags(jaxpr, moving)
    sources = {var: 1 for var, flag in zip(opened.invars, flags, strict=True) if flag}
    return {var for var, reached_by in reaching(opened, sources).items() if reached_by}


def reaching(jaxpr: Jaxpr, sources: Mapping[Var, int]) -> dict[Any, int]:
    """Which sources' tangents reach each variable of a program itself, as the bits of a number.

    Arguments:
        jaxpr: the program.
        sources: variables that have a tangent of their own, inputs or not, each with its bit.
    """
    reach, facts = Reach(), dict[Any, int](sources)
    for eqn in jaxpr.eqns:
        args = [0 if isinstance(atom, Literal) else facts.get(atom, 0) for atom in eqn.invars]
        for var, fact in zip(eqn.outvars, reach.equation(eqn, args), strict=True):
            facts[var] = fact | sources.get(var, 0)
    return facts


def _flags(jaxpr: Any, moving: Sequence[bool]) -> list[bool]:
    invars = getattr(jaxpr, "jaxpr", jaxpr).invars
    return [moves and is_inexact(var.aval) for moves, var in zip(moving, invars, strict=True)]
