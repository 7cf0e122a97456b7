"""What a program costs: equations, floating-point operations and bytes moved, with trip counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from jax.extend.core import ClosedJaxpr, Var, jaxprs_in_params, primitives
from jax.interpreters.partial_eval import dce_jaxpr

from mixflow.compiler.derivative.spelling import spell_out
from mixflow.compiler.derivative.vjp_primitive import SYMBOLIC
from mixflow.compiler.jaxprs.equations import variables_read
from mixflow.compiler.jaxprs.sizes import array_bytes, count_elements, dims_of, number_of
from mixflow.compiler.primitives import row_of


@dataclass(frozen=True)
class Cost:
    """Arguments:
    flops: floating-point operations, a multiply-add counted as two; None where a trip count
        is unknown.
    eqns: equations, those of nested programs counted once.

    bytes: bytes that are read and written, those inside of fused element-wise code left out;
        None where a trip count is unknown.
    transcendentals: elements that slow functions are computed for; each is one of
        the flops, too. None where a trip count is unknown.
    """

    flops: float | None
    eqns: int
    bytes: float | None = 0.0
    transcendentals: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            _both(self.flops, other.flops),
            self.eqns + other.eqns,
            _both(self.bytes, other.bytes),
            _both(self.transcendentals, other.transcendentals),
        )

    def times(self, count: int | None) -> Cost:
        """The cost of running this `count` times, None meaning that nobody knows."""
        return Cost(
            _times(self.flops, count),
            self.eqns,
            _times(self.bytes, count),
            _times(self.transcendentals, count),
        )


def _both(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _times(amount: float | None, count: int | None) -> float | None:
    return None if amount is None or count is None else amount * count


NOTHING = Cost(0.0, 0)

MATERIAL = (
    *("dot_general", "conv_general", "reduce", "cum", "arg", "sort", "gather", "scatter"),
    *("dynamic_", "triangular", "cholesky", "lu", "qr", "eigh", "svd", "fft", "random", "threefry"),
)
"""How the names of primitives begin that read and write memory; others are fused into them."""


def program_cost(closed: ClosedJaxpr) -> Cost:
    """The cost of a program, dead code left out and symbolic derivatives spelled out.

    Arguments:
        closed: as `jax.make_jaxpr` or `jax.jit(f).trace(...).jaxpr` gives it.
    """
    return _live_cost(closed, [True] * len(closed.jaxpr.outvars))


_KNOWN: WeakKeyDictionary[ClosedJaxpr, dict[tuple[bool, ...], Cost]] = WeakKeyDictionary()


def _live_cost(closed: ClosedJaxpr, used: list[bool]) -> Cost:
    known = _KNOWN.setdefault(closed, {})
    if tuple(used) not in known:
        jaxpr = closed.jaxpr
        opened = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
        known[tuple(used)] = _cost(dce_jaxpr(opened, used)[0])
    return known[tuple(used)]


def _cost(jaxpr: Any) -> Cost:
    read = variables_read(jaxpr)
    return sum((_equation_cost(eqn, read) for eqn in jaxpr.eqns), NOTHING)


def _equation_cost(eqn: Any, read: set[Var]) -> Cost:
    if eqn.primitive in SYMBOLIC:
        return _derivative_cost(eqn, [var in read for var in eqn.outvars])
    nested = [_cost(inner) for inner in jaxprs_in_params(eqn.params)]
    if not nested:
        flops = _leaf_flops(eqn)
        return Cost(flops, 1, _leaf_bytes(eqn), flops if row_of(eqn).slow else 0.0)
    own = Cost(0.0, 1)
    if eqn.primitive is primitives.scan_p:
        return own + nested[0].times(number_of(eqn.params["length"]))
    if eqn.primitive is primitives.while_p:
        return own + sum(nested, NOTHING).times(None)
    if eqn.primitive is primitives.cond_p:
        return own + _worst(nested)
    return own + sum(nested, NOTHING)


def _derivative_cost(eqn: Any, used: list[bool]) -> Cost:
    try:
        plain = spell_out(eqn)
    except NameError:  # a mesh axis that exists only inside of its shard_map
        return Cost(None, len(eqn.params["function"].jaxpr.eqns), None, None)
    return _live_cost(plain, used)


def _worst(branches: list[Cost]) -> Cost:
    flops = _most([branch.flops for branch in branches])
    moved = _most([branch.bytes for branch in branches])
    transcendentals = _most([branch.transcendentals for branch in branches])
    return Cost(flops, sum(branch.eqns for branch in branches), moved, transcendentals)


def _most(amounts: list[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return max(known) if len(known) == len(amounts) else None


def _leaf_bytes(eqn: Any) -> float:
    if not eqn.primitive.name.startswith(MATERIAL):
        return 0.0
    return float(sum(array_bytes(atom.aval) for atom in (*eqn.invars, *eqn.outvars)))


def _leaf_flops(eqn: Any) -> float:
    name = eqn.primitive.name
    if row_of(eqn).free:
        return 0.0
    if name == "dot_general":
        return _dot_flops(eqn)
    if name == "conv_general_dilated":
        return _conv_flops(eqn)
    operands = eqn.invars if name.startswith(("reduce", "cum", "arg", "sort")) else eqn.outvars
    return float(max((count_elements(atom.aval) for atom in operands), default=0))


def _dot_flops(eqn: Any) -> float:
    (contracting, _), _ = eqn.params["dimension_numbers"]
    lhs = dims_of(eqn.invars[0].aval)
    return 2.0 * count_elements(eqn.outvars[0].aval) * math.prod(lhs[dim] for dim in contracting)


def _conv_flops(eqn: Any) -> float:
    kernel = dims_of(eqn.invars[1].aval)
    out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * count_elements(eqn.outvars[0].aval) * math.prod(kernel) / max(out_features, 1)


def equation_flops(eqn: Any) -> float:
    """Floating-point operations of one equation, nested programs included."""
    return _equation_cost(eqn, set(eqn.outvars)).flops or 0.0
