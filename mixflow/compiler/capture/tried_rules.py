"""What a function's custom rules do that its equation would not show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import Var

from mixflow.compiler.capture.custom_rules import effects_of_rules, retypes
from mixflow.compiler.capture.traced import TracedFunction
from mixflow.compiler.derivative.differentiand import Differentiand
from mixflow.compiler.jaxprs.values import spec_of
from mixflow.compiler.recording import paused


@dataclass(frozen=True)
class Tried:
    """What came out of trying a function's rules.

    Arguments:
        why: why the function cannot stand in an equation; empty where it can.
        runs_here: whether the traced function is differentiated then, and not the user's own.
        retyped: as for `Differentiand`.
    """

    why: str = ""
    runs_here: bool = True
    retyped: bool = False


def try_rules(traced: TracedFunction, function: Differentiand) -> Tried:
    """Try a function's custom rules, if it has any of unknown make."""
    if not function.custom:
        return Tried()
    with paused():
        why = _effects(traced)
        if why:
            return Tried(why)
        retyping = [eqn for eqn in traced.jaxpr.jaxpr.eqns if retypes(eqn)]
        if not retyping:
            return Tried()
        if _is_read(traced, retyping):
            why = "a custom rule gives a value another weak type than its function"
            return Tried(why, runs_here=False)
        return Tried(retyped=_is_retyped(function))


def _effects(traced: TracedFunction) -> str:
    """What the rules, or derivatives of them, do beside computing, in words if at all."""
    effects = list(effects_of_rules(traced.jaxpr.jaxpr))
    return f"a custom rule has effects: {', '.join(dict.fromkeys(effects))}" if effects else ""


def _is_read(traced: TracedFunction, retyping: list[Any]) -> bool:
    """Whether something is computed from a value that plain JAX would type by a custom rule.

    Plain JAX runs the rule while the user's function runs; here the function was traced first.
    """
    eqns = traced.jaxpr.jaxpr.eqns
    read = {atom for eqn in eqns for atom in eqn.invars if isinstance(atom, Var)}
    return any(not read.isdisjoint(eqn.outvars) for eqn in eqns if eqn in retyping)


def _is_retyped(function: Differentiand) -> bool:
    """Whether value or gradient come out with other weak types than the function's."""
    split = function.num_consts

    def program(*inputs: Any) -> Any:
        return function.value_and_gradient(inputs[:split], inputs[split:])

    closed: Any = jax.make_jaxpr(program)(*map(spec_of, function.jaxpr.in_avals))
    types: list[Any] = [*function.jaxpr.out_avals, *function.point_avals]
    pairs = zip(closed.out_avals, types, strict=True)
    return any(ruled.weak_type != aval.weak_type for ruled, aval in pairs)
