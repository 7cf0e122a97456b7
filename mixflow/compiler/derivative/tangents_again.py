"""A pushforward whose tangents are computed again on the way back, from few saved values.

The tangent of y = tanh(a) is

    y_dot = a_dot * (1 - y * y)

Reverse mode would save y and 1 - y * y. The second follows from the first, so y is enough. Here the
values of the least bytes that all coefficients follow from (`smallest_cut`) are saved, with the
tangents that the pushforward is given. The coefficients and the new tangents are computed from
them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.cuts import smallest_cut
from mixflow.compiler.jaxprs.equations import jaxpr_of, variables, without_jits
from mixflow.compiler.jaxprs.values import Values, merge, partition


def run_tangents_again(
    closed: ClosedJaxpr, moving: Values, resting: Values, moved: Values
) -> list[Any]:
    """The results of a pushforward's program; those that are tangents come from a checkpoint.

    Arguments:
        closed: of `moving`, `resting` and `moved`, without effects. All of it may be rerun.
        moving: values that have tangents.
        resting: values that have none.
        moved: the tangents.
    """
    jaxpr = without_jits(closed.jaxpr)
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    given = dict(zip(inputs, [*closed.consts, *moving, *resting, *moved], strict=True))
    tangents = _following(jaxpr.eqns, inputs[len(inputs) - len(moved) :])
    is_tangent = [isinstance(atom, Var) and atom in tangents for atom in jaxpr.outvars]
    pushed, outputs = partition(is_tangent, jaxpr.outvars)
    values = [eqn for eqn in jaxpr.eqns if tangents.isdisjoint(eqn.outvars)]

    known = [var for var in inputs if var not in tangents]
    saved = smallest_cut(values, known, _coefficients(jaxpr.eqns, tangents), {*variables(outputs)})
    again, read = _that_give(pushed, jaxpr.eqns, saved)
    made = [var for var in read if var not in given]

    computed = _run(jaxpr_of(inputs, [*outputs, *made], values), given.values())
    given.update(zip(made, computed[len(outputs) :], strict=True))
    # A barrier on what rests would keep XLA from computing it, a mask for example, in its readers.
    rests = {*jaxpr.constvars, *jaxpr.invars[len(moving) : len(moving) + len(resting)]}
    with jax_compat.flags_off():  # JAX 0.10 looks at them here, 0.12 where it is called
        rerun = jax.checkpoint(
            lambda *args: _run(jaxpr_of(read, pushed, again), args),
            prevent_cse=tuple(var not in rests for var in read),
        )
        results = rerun(*(given[var] for var in read))
    return merge(is_tangent, results, computed[: len(outputs)])


def _run(jaxpr: Any, args: Iterable[Any]) -> list[Any]:
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))(*args)


def _following(eqns: Iterable[Any], moved: Iterable[Var]) -> set[Var]:
    """The tangents that are given, and all that is computed from them."""
    tangents = set(moved)
    for eqn in eqns:
        if not tangents.isdisjoint(variables(eqn.invars)):
            tangents.update(eqn.outvars)
    return tangents


def _coefficients(eqns: Iterable[Any], tangents: set[Var]) -> list[Var]:
    """What equations of tangents read beside them."""
    pushes = [eqn for eqn in eqns if not tangents.isdisjoint(eqn.outvars)]
    read = dict.fromkeys(var for eqn in pushes for var in variables(eqn.invars))
    return [var for var in read if var not in tangents]


def _that_give(
    results: Sequence[Any], eqns: Sequence[Any], saved: set[Var]
) -> tuple[list[Any], list[Var]]:
    """The equations that compute the results from saved values, and what they read in all."""
    needed, found = dict.fromkeys(results), list[Any]()
    for eqn in reversed(eqns):
        if any(var in needed and var not in saved for var in eqn.outvars):
            found.append(eqn)
            needed.update(dict.fromkeys(variables(eqn.invars)))
    defined = {var for eqn in found for var in eqn.outvars}
    return found[::-1], [var for var in needed if var not in defined]
