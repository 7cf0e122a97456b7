"""What custom derivative rules do beside differentiating: nobody sees it before they are traced.

JAX traces a rule only when it differentiates the call, so the call's equation says nothing of a
`jax.debug.print` in the rule. Here a call is differentiated by itself to find out: first its own
rules, then those of the custom functions that the rules call, for derivatives of derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, Var, jaxprs_in_params

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.effects import effects_in
from mixflow.compiler.jaxprs.values import is_inexact, merge, partition, spec_of
from mixflow.compiler.rules.suspects import is_custom, is_opaque

_DEEPEST = 3
"""Inner gradients are of first order, outer ones of second; somebody may differentiate those."""


def effects_of_rules(jaxpr: Any, deepest: int = _DEEPEST) -> Iterator[str]:
    """Every effect in the rules of the custom functions that a jaxpr calls, in words.

    Arguments:
        jaxpr: open; calls at any depth in it count.
        deepest: how deep to look into rules of functions that rules call.
    """
    for eqn in _calls(jaxpr):
        yield from effects_of_rule(eqn, deepest)


def effects_of_rule(eqn: Any, deepest: int = _DEEPEST) -> Iterator[str]:
    """Every effect in the rules of one call, and in those that they call."""
    for tried in _tried(eqn):
        yield from effects_in(tried.jaxpr)
        if deepest > 1:
            yield from effects_of_rules(tried.jaxpr, deepest - 1)


def equations_with_effects(jaxpr: Any) -> Iterator[dict[str, Any]]:
    """The parameters of each equation that rules give effects: calls, and what they stand in.

    Captured gradients have none: such a function is not captured.
    """
    calls = [eqn.params for eqn in _calls(jaxpr) if any(effects_of_rule(eqn))]
    return _around(jaxpr, {id(params) for params in calls}) if calls else iter(())


def _around(jaxpr: Any, calls: set[int]) -> Iterator[dict[str, Any]]:
    for eqn in jaxpr.eqns:
        inside = [one for inner in jaxprs_in_params(eqn.params) for one in _around(inner, calls)]
        if inside or id(eqn.params) in calls:
            yield eqn.params
        yield from inside


def _calls(jaxpr: Any) -> list[Any]:
    """Every call of a custom function, captured gradients left out; one jaxpr's calls are once."""
    calls = (one for eqn in jaxpr.eqns for one in _calls_in(eqn))
    return list({id(one.params): one for one in calls}.values())


def _calls_in(eqn: Any) -> list[Any]:
    """The equation, if it calls a custom function, or else the calls in what it runs."""
    if is_custom(eqn):
        return [eqn]
    if is_opaque(eqn):
        return []
    return [one for inner in jaxprs_in_params(eqn.params) for one in _calls(inner)]


def retypes(eqn: Any) -> bool:
    """Whether rules give an equation's results other weak types than the functions give them.

    What Python does with a value, such as `f(x) * y` in half precision, may depend on that.
    """
    return any(map(_is_retyped, _calls_in(eqn))) and _is_retyped(eqn)


def _is_retyped(eqn: Any) -> bool:
    expected = [var.aval.weak_type for var in eqn.outvars if is_inexact(var.aval)]
    return any(
        [aval.weak_type for aval in tried.out_avals[: len(expected)]] != expected
        for tried in _tried(eqn)
    )


def _tried(eqn: Any) -> list[Any]:
    """A call differentiated in reverse: in all of its arguments, or in each where that fails.

    Empty where it fails altogether: rules that cannot be traced can do nothing.
    """
    if not all(isinstance(atom.aval, ShapedArray) for atom in (*eqn.invars, *eqn.outvars)):
        return []  # mutable references, which no pass looks at
    positions = [position for position, atom in enumerate(eqn.invars) if is_inexact(atom.aval)]
    found = _differentiated(eqn, positions)
    alone = (
        [_differentiated(eqn, [position]) for position in positions] if found is None else [found]
    )
    return [one for one in alone if one is not None]


def _differentiated(eqn: Any, positions: list[int]) -> ClosedJaxpr | None:
    """The inexact values of a call and its pullback to the arguments at some places, traced."""
    moves = [position in positions for position in range(len(eqn.invars))]
    counts = [is_inexact(var.aval) for var in eqn.outvars]
    call = _alone(eqn)

    def value_and_pullback(*args: Any) -> Any:
        point, fixed = partition(moves, args)

        def values(*point: Any) -> Any:
            results = jax.core.eval_jaxpr(call, (), *merge(moves, point, fixed))
            return partition(counts, results)

        results, pullback, _ = jax_compat.VJP_OF_JAX(values, *point, has_aux=True)
        return results, pullback([jnp.ones_like(result) for result in results])

    avals = [atom.aval for atom in eqn.invars]
    try:
        with _mesh_of(avals):
            return jax.make_jaxpr(value_and_pullback)(*map(spec_of, avals))
    except Exception:  # a rule is somebody's Python, and may refuse in any way
        return None


def _mesh_of(avals: list[Any]) -> Any:
    """The mesh that a call stands in, which it may be looked at from outside of."""
    mesh = next((aval.sharding.mesh for aval in avals if not aval.sharding.mesh.empty), None)
    if mesh is None or mesh == jax.sharding.get_abstract_mesh():
        return nullcontext()
    varies = any(aval.manual_axis_type.varying for aval in avals)
    return jax_compat.inside_mesh(mesh, checks_varying=varies)


def _alone(eqn: Any) -> Jaxpr:
    """An equation as a program of its own, of all of its operands."""
    args = [Var(atom.aval) for atom in eqn.invars]
    results = [Var(var.aval) for var in eqn.outvars]
    atoms = [
        atom if isinstance(atom, Literal) else arg
        for atom, arg in zip(eqn.invars, args, strict=True)
    ]
    names = DebugInfo("mixflow", "a custom rule", ("",) * len(args), ("",) * len(results))
    call = eqn.replace(invars=atoms, outvars=results)
    return Jaxpr((), args, results, [call], call.effects, debug_info=names)
