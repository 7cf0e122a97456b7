"""Groups of equations that XLA fuses, with tangents that are computed again, not saved.

Reverse mode over a pushforward saves what the tangent of every single equation needs. Of a softmax,

    e = exp(s),  y = e / sum(e),

that is the tangent of s, those of e and of its sum, and products of them with e and y. But all of
them follow from the tangent of s, from e and from its sum, and XLA computes them again in few
kernels. So a group becomes a `custom_jvp` whose rule does that (`tangents_again.py`). A product of
matrices, a loop or a call is in no group, so none of them is rerun.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.tangents_again import run_tangents_again
from mixflow.compiler.derivative.zeros import push_forward, symbolic_zeros
from mixflow.compiler.jaxprs.equations import (
    as_custom_jvp,
    jaxpr_of,
    rewrite_jaxprs,
    variables,
    without_jits,
)
from mixflow.compiler.jaxprs.values import Values, is_inexact, merge, partition
from mixflow.compiler.primitives import Work, row_of

_FUSIBLE = (Work.SAME, Work.SPREAD, Work.REDUCE)
_CUSTOM = "custom_jvp_call"


def with_fusible_groups(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same program, with a `custom_jvp_call` in the place of every group.

    Arguments:
        closed: any program. A jaxpr with effects keeps its equations, and so their order.
    """
    return rewrite_jaxprs(closed, _grouped)


def _grouped(jaxpr: Jaxpr) -> Jaxpr:
    if jaxpr.effects:
        return jaxpr
    jaxpr = without_jits(jaxpr)
    groups = _Groups(jaxpr)
    eqns = [new for step in groups.steps() for new in groups.written(step)]
    return jax_compat.with_equations(jaxpr, eqns)


def _is_fusible(eqn: Any) -> bool:
    if eqn.primitive.name == _CUSTOM:
        return all(_is_fusible(one) for one in eqn.params["call_jaxpr"].eqns)
    if eqn.primitive.name == "jit":
        return all(_is_fusible(one) for one in eqn.params["jaxpr"].eqns)
    row = row_of(eqn)
    return row.is_elementwise or row.work in _FUSIBLE or (row.work is Work.MOVE and _reads_one(eqn))


def _reads_one(eqn: Any) -> bool:
    """Whether it moves elements of one array, by what stands in the program, into one array."""
    others = eqn.invars[1:]
    return len(eqn.outvars) == 1 and all(isinstance(other, Literal) for other in others)


class _Groups:
    """Which equations of a jaxpr go together.

    An equation's *depth* is how many equations that no group holds lie before it on the longest
    way to it. Equations of one depth that read each other are one group: no way leads out of it and
    back in, as that would make it deeper.
    """

    def __init__(self, jaxpr: Jaxpr) -> None:
        self._eqns: list[Any] = list(jaxpr.eqns)
        self._fusible = list(map(_is_fusible, self._eqns))
        self._leader = list(range(len(self._eqns)))
        self._depths = self._join()
        self._readers = self._read_by(jaxpr)

    def steps(self) -> list[list[int]]:
        """The equations by number: each group, and each other equation, after what it reads."""
        by_depth: dict[int, dict[int, list[int]]] = {}
        for number, depth in enumerate(self._depths):
            # At one depth groups come first: the other equations read them.
            position = 2 * depth + (not self._fusible[number])
            by_depth.setdefault(position, {}).setdefault(self._lead(number), []).append(number)
        return [step for position in sorted(by_depth) for step in by_depth[position].values()]

    def written(self, step: list[int]) -> list[Any]:
        """The equations in the place of a step."""
        eqns = [self._eqns[number] for number in step]
        # A single equation saves as much as a checkpoint of it would.
        if len(eqns) == 1 or all(map(_is_linear, eqns)):
            return eqns
        made = {var: None for eqn in eqns for var in eqn.outvars}
        read = {var: None for eqn in eqns for var in variables(eqn.invars)}
        inputs = [var for var in read if var not in made]
        outputs = [var for var in made if not self._readers.get(var, set()) <= set(step)]
        return [_as_equation(eqns, inputs, outputs)] if inputs and outputs else eqns

    def _join(self) -> list[int]:
        """The depth of each equation; joins those that are one group on the way."""
        depths, of_value, made_by = [], dict[Var, int](), dict[Var, int]()
        for number, eqn in enumerate(self._eqns):
            read = variables(eqn.invars)
            depth = max((of_value.get(var, 0) for var in read), default=0)
            depths.append(depth)
            of_value.update(dict.fromkeys(eqn.outvars, depth + (not self._fusible[number])))
            if not self._fusible[number]:
                continue
            made_by.update(dict.fromkeys(eqn.outvars, number))
            for var in read:
                maker = made_by.get(var)
                if maker is not None and depths[maker] == depth:
                    self._leader[self._lead(maker)] = number
        return depths

    def _lead(self, number: int) -> int:
        """The equation that stands for its group."""
        while self._leader[number] != number:
            self._leader[number] = self._leader[self._leader[number]]
            number = self._leader[number]
        return number

    def _read_by(self, jaxpr: Jaxpr) -> dict[Var, set[int | None]]:
        """The equations that read each value; None for the jaxpr's results."""
        readers: dict[Var, set[int | None]] = {}
        for number, eqn in enumerate(self._eqns):
            for var in variables(eqn.invars):
                readers.setdefault(var, set()).add(number)
        for var in variables(jaxpr.outvars):
            readers.setdefault(var, set()).add(None)
        return readers


def _is_linear(eqn: Any) -> bool:
    """Whether its tangent needs none of its operands."""
    if not any(is_inexact(var.aval) for var in eqn.outvars):
        return True
    inputs = enumerate(eqn.invars)
    read = {position for position, atom in inputs if not isinstance(atom, Literal)}
    return row_of(eqn).is_linear_in(read, len(eqn.invars))


def _as_equation(eqns: list[Any], inputs: list[Any], outputs: list[Any]) -> Any:
    """One equation for a group, with the rule that this file is about."""
    group = ClosedJaxpr(jaxpr_of(inputs, outputs, eqns), ())
    push = functools.partial(_push_through, group)
    return as_custom_jvp(jaxpr_as_fun(group), push, inputs, outputs)


def _push_through(group: ClosedJaxpr, primals: Values, tangents: Values) -> tuple[Values, Values]:
    """The outputs of a group, and their tangents, which are computed again."""
    moves = [not isinstance(tangent, SymbolicZero) for tangent in tangents]
    moving, resting = partition(moves, primals)
    moved = partition(moves, tangents)[0]
    follows: list[bool] = []

    def push(moving: Values, resting: Values, moved: Values) -> tuple[Values, Values]:
        def call(*moving: Any) -> list[Any]:
            return jaxpr_as_fun(group)(*merge(moves, moving, resting))

        outputs, pushed, follows[:] = push_forward(call, moving, moved)
        return outputs, partition(follows, pushed)[0]

    closed, shapes = jax.make_jaxpr(push, return_shape=True)(moving, resting, moved)
    results = run_tangents_again(closed, moving, resting, moved)
    outputs, pushed = jax.tree.unflatten(jax.tree.structure(shapes), results)
    return outputs, merge(follows, pushed, symbolic_zeros(partition(follows, outputs)[1]))
