"""Value and pullback in one equation, where a custom rule is not linear in its cotangent.

In JAX the value and the pullback of `jax.vjp` share one forward pass. Whoever differentiates them
again pulls the sum of their cotangents back through it, once. Of the rule g ↦ clip(g, -1, 1),

    clip(a + b, -1, 1)      is not      clip(a, -1, 1) + clip(b, -1, 1),

which two equations for value and pullback would come to. So they become one here, whatever the
passes do later. Where that cannot be, as the cotangent depends on the value or the pullback is
called twice, the function is *torn*, and its differentiation has to be JAX's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.differentiand import Soundness
from mixflow.compiler.derivative.vjp_primitive import primal_p, vjp_p
from mixflow.compiler.jaxprs.equations import rewrite_jaxprs, variables, variables_read
from mixflow.compiler.jaxprs.subprograms import nested_jaxprs


def join_where_not_linear(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same program, with such values and pullbacks joined that can be."""
    return rewrite_jaxprs(closed, _joined)


def torn_functions(closed: ClosedJaxpr) -> list[Soundness]:
    """Functions with a rule that is not linear, and with more than one equation in a program."""
    counts = Counter(_sources(closed.jaxpr, set()))
    return [source for source, count in counts.items() if count > 1 and not source.is_linear]


def _sources(jaxpr: Jaxpr, seen: set[int]) -> Iterator[Soundness]:
    """For each symbolic equation at any depth whose results are read, its function.

    The jaxpr of a jit that is called twice is looked at once: each call has equations of its own.
    """
    if id(jaxpr) in seen:
        return
    seen.add(id(jaxpr))
    read = variables_read(jaxpr)
    for eqn in jaxpr.eqns:
        if not read.isdisjoint(eqn.outvars):
            function: Any = eqn.params.get("function")
            if hasattr(function, "soundness"):
                yield function.soundness
        for inner in nested_jaxprs(eqn):
            yield from _sources(inner, seen)


def _joined(jaxpr: Jaxpr) -> Jaxpr:
    eqns = list(jaxpr.eqns)
    for pullback in [eqn for eqn in eqns if eqn.primitive is vjp_p]:
        value = next((eqn for eqn in eqns if _is_value_of(eqn, pullback)), None)
        if value is not None and not pullback.params["function"].soundness.is_linear:
            eqns = _join(eqns, value, pullback)
    return jax_compat.with_equations(jaxpr, eqns)


def _is_value_of(eqn: Any, pullback: Any) -> bool:
    """Whether an equation gives the value of what another pulls back through."""
    return (
        eqn.primitive is primal_p
        and not pullback.params["with_value"]
        and eqn.params["function"] is pullback.params["function"]
        and list(eqn.invars) == list(pullback.invars[: len(eqn.invars)])
    )


def _join(eqns: list[Any], value: Any, pullback: Any) -> list[Any]:
    """The equations with these two joined; as they are where the cotangent needs the value."""
    start, stop = eqns.index(value), eqns.index(pullback)
    # What stands between the two goes before the joined equation where the cotangent needs it, and
    # after it else: `v, pull = vjp(f, x); w = g(c); s = h(v); pull(w)` becomes w, (v, x̄), s.
    needed, before, after = {*variables(pullback.invars)}, list[Any](), list[Any]()
    for eqn in reversed(eqns[start + 1 : stop]):
        is_needed = not needed.isdisjoint(eqn.outvars)
        (before if is_needed else after).append(eqn)
        needed.update(variables(eqn.invars) if is_needed else ())
    if not needed.isdisjoint(value.outvars) or any(eqn.effects for eqn in before):
        return eqns
    joined = pullback.replace(
        outvars=[*value.outvars, *pullback.outvars], params={**pullback.params, "with_value": True}
    )
    return [*eqns[:start], *before[::-1], joined, *after[::-1], *eqns[stop + 1 :]]
