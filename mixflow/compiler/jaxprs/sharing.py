"""Code that is repeated becomes one function that is called: JAX then differentiates it once.

    x1 = layer(x0, w0)  written out          x1 = repeated(x0, w0)
    x2 = layer(x1, w1)  written out    →     x2 = repeated(x1, w1)
    …                                        …

JAX remembers by the function what it has traced for a call: the derivatives, their transposition,
the lowering. So for twelve layers it traces one. XLA puts the bodies in the places of the calls
before it does anything else, so its program stays the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxprs_in_params

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.equations import jaxpr_of, rewrite_jaxprs, variables
from mixflow.compiler.jaxprs.repeats import Repeats, Run
from mixflow.compiler.jaxprs.structure import kind_of, structure_of

LEAST = 12
"""The fewest equations in a window, those inside of equations counted. JAX takes as long to
differentiate a call as some five equations."""

NAME = "repeated"
"""What the functions are called in XLA's programs."""

_SIZES: WeakKeyDictionary[Jaxpr, int] = WeakKeyDictionary()
_SHARED: WeakKeyDictionary[ClosedJaxpr, ClosedJaxpr] = WeakKeyDictionary()
_FUNCTIONS: WeakValueDictionary[Hashable, ClosedJaxpr] = WeakValueDictionary()


def with_shared_code(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same program, with calls of one function in the place of equations that are repeated.

    Arguments:
        closed: any program; those inside of its equations are looked into. What has effects stays
            as it is.
    """
    if closed not in _SHARED:
        _SHARED[closed] = rewrite_jaxprs(closed, _with_calls)
    return _SHARED[closed]


def _with_calls(jaxpr: Jaxpr) -> Jaxpr:
    runs = _runs(jaxpr)
    if not runs:
        return jaxpr
    last_reads = _last_reads(jaxpr)
    eqns: list[Any] = []
    done = 0
    for run in runs:
        eqns += [*jaxpr.eqns[done : run.start], *_calls(jaxpr.eqns, run, last_reads)]
        done = run.stop
    return jax_compat.with_equations(jaxpr, [*eqns, *jaxpr.eqns[done:]])


def _runs(jaxpr: Jaxpr) -> list[Run]:
    """Windows of equations of the same kinds that were written at the same lines."""
    eqns, weights = jaxpr.eqns, list(map(_weight, jaxpr.eqns))
    if sum(weights) < 2 * LEAST:
        return []
    # What has effects is to stay where it is: it is like nothing else.
    kinds = [object() if eqn.effects else kind_of(eqn) for eqn in eqns]
    reads = [list(variables(eqn.invars)) for eqn in eqns]
    return Repeats.of(kinds, weights, reads, [eqn.outvars for eqn in eqns]).apart(LEAST)


def _weight(eqn: Any) -> int:
    """How many equations an equation is, with those inside of it."""
    derived = [one.jaxpr.jaxpr for one in eqn.params.values() if hasattr(one, "structure_key")]
    return 1 + sum(map(_size, (*jaxprs_in_params(eqn.params), *derived)))


def _size(jaxpr: Jaxpr) -> int:
    if jaxpr not in _SIZES:
        _SIZES[jaxpr] = sum(map(_weight, jaxpr.eqns))
    return _SIZES[jaxpr]


def _last_reads(jaxpr: Jaxpr) -> dict[Var, int]:
    """The place of the last equation that reads each value; after them all for a result."""
    last: dict[Var, int] = {}
    for place, eqn in enumerate(jaxpr.eqns):
        last.update(dict.fromkeys(variables(eqn.invars), place))
    last.update(dict.fromkeys(variables(jaxpr.outvars), len(jaxpr.eqns)))
    return last


def _calls(eqns: Sequence[Any], run: Run, last_reads: dict[Var, int]) -> list[Any]:
    """A call for each window. All of them return what is read after any of them."""
    made = [[var for place in window for var in eqns[place].outvars] for window in run.windows]
    returned = [
        position
        for position, values in enumerate(zip(*made, strict=True))
        if any(
            last_reads.get(var, -1) >= window.stop
            for var, window in zip(values, run.windows, strict=True)
        )
    ]
    return [
        _call(eqns[window.start : window.stop], [values[position] for position in returned])
        for window, values in zip(run.windows, made, strict=True)
    ]


def _call(eqns: Sequence[Any], results: list[Var]) -> Any:
    """A jit of some equations: the same one for equations that do and read the same."""
    made = {var for eqn in eqns for var in eqn.outvars}
    read = dict.fromkeys(var for eqn in eqns for var in variables(eqn.invars))
    operands = [var for var in read if var not in made]
    closed = ClosedJaxpr(jaxpr_of(operands, results, eqns), ())
    function = _FUNCTIONS.setdefault(structure_of(closed), closed)
    template = _jit_of_scalars(len(operands), len(results))
    return template.replace(
        invars=operands,
        outvars=results,
        params={**template.params, "jaxpr": function, "name": NAME},
        source_info=eqns[0].source_info,
        ctx=eqns[0].ctx,
    )


@cache
def _jit_of_scalars(operands: int, results: int) -> Any:
    """A call of a jit whose operands, results and program are to be replaced."""
    call = jax.jit(lambda *xs: (0.0,) * results)
    (eqn,) = jax.make_jaxpr(call)(*[0.0] * operands).jaxpr.eqns
    return eqn
