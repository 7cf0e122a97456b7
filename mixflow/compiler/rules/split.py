"""A function without what is better differentiated outside of it.

The symmetric rule differentiates all of f twice. What no tangent of the point reaches plain JAX
differentiates once, so that it may have an infinite second derivative there, or none. It can be
taken out: with x the point, the loss

    fit(x, c) + jnp.sum(jnp.sqrt(c))      becomes      fit(x, c) + jnp.sum(q),   q = jnp.sqrt(c)

where q is computed before the gradient, and is one more constant for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import ClosedJaxpr, Var

from mixflow.compiler.jaxprs.equations import jaxpr_of, variables
from mixflow.compiler.rules.reach import reached_variables


@dataclass(frozen=True)
class Split:
    """A function in two.

    Arguments:
        outside: from all inputs of f to q. It reads no more of x than its value.
        inside: f's outputs, from c, then q, then x.
        num_taken: the number of values in q.
    """

    outside: ClosedJaxpr
    inside: ClosedJaxpr
    num_taken: int


def split_off(
    closed: ClosedJaxpr,
    num_consts: int,
    active: Sequence[bool],
    is_taken: Callable[[Any], bool],
) -> Split | None:
    """Take equations out of a function, and those that they need; None if there is none to take.

    Arguments:
        closed: f's, without constants; its inputs are c, then x.
        num_consts: the number of inputs that belong to c.
        active: for each input, whether the outer differentiation reaches it.
        is_taken: whether an equation is to be taken out, if that can be.
    """
    jaxpr = closed.jaxpr
    moving = [position >= num_consts for position in range(len(jaxpr.invars))]
    by_point, by_consts = reached_variables(jaxpr, moving), reached_variables(jaxpr, active)
    # What can be computed before the gradient, from f's inputs alone.
    known, free = set[Var](jaxpr.invars), list[Any]()
    for eqn in jaxpr.eqns:
        if known.issuperset(variables(eqn.invars)) and by_point.isdisjoint(eqn.outvars):
            known.update(eqn.outvars)
            free.append(eqn)
    wanted = [eqn for eqn in free if is_taken(eqn) and not by_consts.isdisjoint(eqn.outvars)]
    return _cut(closed, num_consts, _with_needed(free, wanted)) if wanted else None


def _with_needed(free: list[Any], wanted: list[Any]) -> list[Any]:
    """The wanted equations and all that compute what those read, in order."""
    read = set[Any]()
    needed = list[Any]()
    for eqn in reversed(free):
        if eqn in wanted or not read.isdisjoint(eqn.outvars):
            needed.append(eqn)
            read.update(variables(eqn.invars))
    return needed[::-1]


def _cut(closed: ClosedJaxpr, num_consts: int, taken: list[Any]) -> Split:
    jaxpr = closed.jaxpr
    moved = {id(eqn) for eqn in taken}
    rest = [eqn for eqn in jaxpr.eqns if id(eqn) not in moved]
    born = dict.fromkeys(var for eqn in taken for var in eqn.outvars)
    read = {var for eqn in rest for var in variables(eqn.invars)}
    read.update(variables(jaxpr.outvars))
    given = [var for var in born if var in read]
    invars = [*jaxpr.invars[:num_consts], *given, *jaxpr.invars[num_consts:]]
    return Split(
        ClosedJaxpr(jaxpr_of(jaxpr.invars, given, taken), ()),
        ClosedJaxpr(jaxpr_of(invars, jaxpr.outvars, rest), ()),
        len(given),
    )
