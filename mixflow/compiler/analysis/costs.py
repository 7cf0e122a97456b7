"""What a program costs: equations and floating-point operations, trip counts included."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import jax
from jax.extend.core import ClosedJaxpr, Var, jaxprs_in_params, primitives
from jax.interpreters.partial_eval import dce_jaxpr

from mixflow.compiler.vjp_primitive import SYMBOLIC

FREE = frozenset(
    {
        *("broadcast_in_dim", "reshape", "squeeze", "transpose", "rev", "concatenate", "pad"),
        *("slice", "dynamic_slice", "gather", "copy", "iota", "select_n", "name"),
        *("convert_element_type", "bitcast_convert_type", "stop_gradient"),
    }
)
"""Primitives that move data and compute nothing."""


@dataclass(frozen=True)
class Cost:
    """Arguments:
    flops: floating-point operations, a multiply-add counted as two; None where a trip count
        is unknown.
    eqns: equations, those of nested programs counted once.
    """

    flops: float | None
    eqns: int

    def __add__(self, other: Cost) -> Cost:
        eqns = self.eqns + other.eqns
        if self.flops is None or other.flops is None:
            return Cost(None, eqns)
        return Cost(self.flops + other.flops, eqns)

    def times(self, count: int | None) -> Cost:
        """The cost of running this `count` times, None meaning that nobody knows."""
        if self.flops is None or count is None:
            return Cost(None, self.eqns)
        return Cost(self.flops * count, self.eqns)


NOTHING = Cost(0.0, 0)


def program_cost(closed: ClosedJaxpr) -> Cost:
    """The cost of a program, dead code left out and symbolic derivatives spelled out.

    Arguments:
        closed: as `jax.make_jaxpr` or `jax.jit(f).trace(...).jaxpr` gives it.
    """
    return _live_cost(closed, [True] * len(closed.jaxpr.outvars))


def _live_cost(closed: ClosedJaxpr, used: list[bool]) -> Cost:
    jaxpr = closed.jaxpr
    opened = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    return _cost(dce_jaxpr(opened, used)[0])


def _cost(jaxpr: Any) -> Cost:
    read = {atom for eqn in jaxpr.eqns for atom in eqn.invars if isinstance(atom, Var)}
    read |= {atom for atom in jaxpr.outvars if isinstance(atom, Var)}
    return sum((_equation_cost(eqn, read) for eqn in jaxpr.eqns), NOTHING)


def _equation_cost(eqn: Any, read: set[Var]) -> Cost:
    if eqn.primitive in SYMBOLIC:
        return _derivative_cost(eqn, [var in read for var in eqn.outvars])
    nested = [_cost(inner) for inner in jaxprs_in_params(eqn.params)]
    if not nested:
        return Cost(_leaf_flops(eqn), 1)
    own = Cost(0.0, 1)
    if eqn.primitive is primitives.scan_p:
        return own + nested[0].times(eqn.params["length"])
    if eqn.primitive is primitives.while_p:
        return own + sum(nested, NOTHING).times(None)
    if eqn.primitive is primitives.cond_p:
        return own + _worst(nested)
    return own + sum(nested, NOTHING)


def _derivative_cost(eqn: Any, used: list[bool]) -> Cost:
    try:
        plain = spell_out(eqn)
    except NameError:  # a mesh axis that exists only inside of its shard_map
        return Cost(None, len(eqn.params["function"].jaxpr.eqns))
    return _live_cost(plain, used)


def _worst(branches: list[Cost]) -> Cost:
    flops = [branch.flops for branch in branches]
    known = [flop for flop in flops if flop is not None]
    worst = max(known) if len(known) == len(flops) else None
    return Cost(worst, sum(branch.eqns for branch in branches))


_SPELLED: WeakKeyDictionary[Any, dict[Any, ClosedJaxpr]] = WeakKeyDictionary()


def spell_out(eqn: Any) -> ClosedJaxpr:
    """A symbolic derivative's equation as the plain program that it lowers to."""
    known = _SPELLED.setdefault(eqn.params["function"], {})
    others = {name: value for name, value in eqn.params.items() if name != "function"}
    key = eqn.primitive, tuple(sorted(others.items())), tuple(v.aval for v in eqn.invars)
    if key not in known:
        known[key] = _spelled_out(eqn)
    return known[key]


def _spelled_out(eqn: Any) -> ClosedJaxpr:
    implementation: Callable[..., Any] = SYMBOLIC[eqn.primitive]
    specs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    return jax.make_jaxpr(lambda *operands: implementation(*operands, **eqn.params))(*specs)


def _leaf_flops(eqn: Any) -> float:
    name = eqn.primitive.name
    if name in FREE:
        return 0.0
    if name == "dot_general":
        return _dot_flops(eqn)
    if name == "conv_general_dilated":
        return _conv_flops(eqn)
    operands = eqn.invars if name.startswith(("reduce", "cum", "arg", "sort")) else eqn.outvars
    return float(max((_size(atom) for atom in operands), default=0))


def _dot_flops(eqn: Any) -> float:
    (contracting, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2.0 * _size(eqn.outvars[0]) * math.prod(lhs[dim] for dim in contracting)


def _conv_flops(eqn: Any) -> float:
    kernel = eqn.invars[1].aval.shape
    out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * _size(eqn.outvars[0]) * math.prod(kernel) / max(out_features, 1)


def _size(atom: Any) -> int:
    return math.prod(_dims(atom))


def _dims(atom: Any) -> Iterator[int]:
    return (dim for dim in getattr(atom.aval, "shape", ()) if isinstance(dim, int))


def equation_flops(eqn: Any) -> float:
    """Floating-point operations of one equation, nested programs included."""
    return _equation_cost(eqn, set()).flops or 0.0
