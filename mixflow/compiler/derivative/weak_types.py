"""Whether a gradient is weakly typed, told without tracing the whole of it.

JAX calls a type weak that came from a Python number: `jnp.full(5, 0.1)` has one. What a gradient
with respect to it is, weak or not, JAX's rules decide one by one. They look at the equations that
read weakly typed values, and at no others:

    rate = rates[3]                     weak: goes on to the next line
    scaled = convert_element_type rate  strong: this is where it ends
    step = scaled * gradient

So these equations alone are differentiated, a few slices and conversions of a large program.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.equations import jaxpr_of, variables
from mixflow.compiler.jaxprs.values import is_inexact, partition, spec_of
from mixflow.compiler.rules.reach import reaching


def gradient_types(
    jaxpr: Jaxpr, num_consts: int, carries: Sequence[bool], cotangents: Sequence[Any]
) -> list[Any]:
    """The types of a function's gradients in its point.

    Arguments:
        jaxpr: the function's; its inputs are c, then x.
        num_consts: the number of inputs that belong to c.
        carries: for each result, whether it has a cotangent.
        cotangents: their types.

    Returns:
        The abstract value of x̄ for each x.
    """
    point = jaxpr.invars[num_consts:]
    types = [var.aval.to_ct_aval() for var in point]
    weak = list(filter(_is_weak, point))
    if not weak:
        return types
    eqns = _readers(jaxpr, weak)
    results, _ = partition(carries, jaxpr.outvars)
    made = [var for eqn in eqns for var in eqn.outvars]
    ends = [var for var in made if is_inexact(var.aval) and not var.aval.weak_type]
    pulled = [(var, var.aval.to_ct_aval()) for var in _that_reach(results, ends, jaxpr)]
    pulled += [(var, aval) for var, aval in zip(results, cotangents, strict=True) if _is_weak(var)]
    found = dict(zip(weak, _pulled_back(weak, eqns, pulled), strict=True))
    return [found.get(var, aval) for var, aval in zip(point, types, strict=True)]


def _is_weak(atom: Any) -> bool:
    return is_inexact(atom.aval) and atom.aval.weak_type


def _readers(jaxpr: Jaxpr, weak: Sequence[Var]) -> list[Any]:
    """The equations that read weakly typed values, or what those make of them."""
    values, eqns = set(weak), list[Any]()
    for eqn in jaxpr.eqns:
        if not values.isdisjoint(variables(eqn.invars)):
            eqns.append(eqn)
            values.update(filter(_is_weak, eqn.outvars))
    return eqns


def _that_reach(results: Sequence[Any], ends: Sequence[Var], jaxpr: Jaxpr) -> list[Var]:
    """Those values whose tangents reach results: the others get no cotangent."""
    bits = {var: 1 << position for position, var in enumerate(ends)}
    facts = reaching(jaxpr, bits)
    reached_by = reduce(or_, (facts.get(var, 0) for var in variables(results)), 0)
    return [var for var in ends if bits[var] & reached_by]


def _pulled_back(
    point: Sequence[Var], eqns: Sequence[Any], pulled: Sequence[tuple[Any, Any]]
) -> list[Any]:
    """The types of the gradients of some equations, for results and cotangents of these types."""
    made = {var for eqn in eqns for var in eqn.outvars}
    read = dict.fromkeys(var for eqn in eqns for var in variables(eqn.invars))
    fixed = [var for var in read if var not in made and var not in point]
    call = jaxpr_as_fun(
        ClosedJaxpr(jaxpr_of([*point, *fixed], [var for var, _ in pulled], eqns), ())
    )

    def gradient(point: list[Any], fixed: list[Any], cotangents: list[Any]) -> list[Any]:
        pullback = jax_compat.VJP_OF_JAX(lambda *point: call(*point, *fixed), *point)[1]
        return list(pullback(cotangents))

    avals = [var.aval for var in point], [var.aval for var in fixed], [aval for _, aval in pulled]
    specs = [list(map(spec_of, group)) for group in avals]
    return list(jax.make_jaxpr(gradient)(*specs).out_avals)
