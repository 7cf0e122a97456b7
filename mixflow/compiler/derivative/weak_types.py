"""Whether a gradient is weakly typed, told without tracing the whole of it.

JAX calls a type weak that came from a Python number: `jnp.full(5, 0.1)` has one. What a gradient
with respect to it is, weak or not, JAX's rules decide one by one. They look at the equations that
read weakly typed values, and at no others:

    rate = rates[3]                     weak: goes on to the next line
    scaled = convert_element_type rate  strong: this is where it ends
    step = scaled * gradient

So these equations alone are differentiated, a few slices and conversions of a large program; of a
loop or a checkpoint, those in its body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import Any

import jax
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    Literal,
    Var,
    jaxpr_as_fun,
    jaxprs_in_params,
    primitives,
)

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
    part = _Part.of(jaxpr, weak)
    results, _ = partition(carries, jaxpr.outvars)
    pulled = [(var, var.aval.to_ct_aval()) for var in part.that_reach(results, jaxpr)]
    pulled += [(var, aval) for var, aval in zip(results, cotangents, strict=True) if _is_weak(var)]
    found = dict(zip(weak, _pulled_back(weak, part, pulled), strict=True))
    return [found.get(var, aval) for var, aval in zip(point, types, strict=True)]


def _is_weak(atom: Any) -> bool:
    return is_inexact(atom.aval) and atom.aval.weak_type


@dataclass(frozen=True)
class _Part:
    """The equations that read weakly typed values, or what those make of them.

    Arguments:
        eqns: in order.
        ends: the strongly typed values that they make, and for each those of the program that are
            reached where it is: itself, or the results of the loop or call that it stands in.
    """

    eqns: list[Any]
    ends: dict[Var, list[Var]]

    @staticmethod
    def of(jaxpr: Jaxpr, weak: Sequence[Var]) -> _Part:
        """What of a program reads some of its values."""
        values, eqns, ends = set(weak), list[Any](), dict[Var, list[Var]]()
        for eqn in jaxpr.eqns:
            if values.isdisjoint(variables(eqn.invars)):
                continue
            eqns.append(_shortened(eqn, values))
            inside = eqns[-1] is not eqn
            made = [var for var in eqns[-1].outvars if is_inexact(var.aval)]
            values.update(filter(_is_weak, made))
            strong = [var for var in made if not var.aval.weak_type]
            ends.update((var, list(eqn.outvars) if inside else [var]) for var in strong)
        return _Part(eqns, ends)

    @property
    def made(self) -> set[Var]:
        """What the equations make."""
        return {var for eqn in self.eqns for var in eqn.outvars}

    @property
    def _read(self) -> list[Var]:
        """What the equations read that none of them makes."""
        read = dict.fromkeys(var for eqn in self.eqns for var in variables(eqn.invars))
        made = self.made
        return [var for var in read if var not in made]

    def computes(
        self, point: Sequence[Var], results: Sequence[Var]
    ) -> tuple[list[Var], Callable[..., Any]]:
        """What it reads beside a point, and the function of both that gives some of its values."""
        fixed = [var for var in self._read if var not in point]
        jaxpr = jaxpr_of([*point, *fixed], results, self.eqns)
        return fixed, jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))

    def that_reach(self, results: Sequence[Any], jaxpr: Jaxpr) -> list[Var]:
        """Those ends whose tangents reach results of a program: the others get no cotangent."""
        bits: dict[Var, int] = {}
        for position, standing in enumerate(self.ends.values()):
            bits.update((var, bits.get(var, 0) | 1 << position) for var in standing)
        facts = reaching(jaxpr, bits)
        reached_by = reduce(or_, (facts.get(var, 0) for var in variables(results)), 0)
        return [var for position, var in enumerate(self.ends) if reached_by >> position & 1]


def _shortened(eqn: Any, weak: AbstractSet[Var]) -> Any:
    """A loop, checkpoint or jit with nothing in it but what reads its weakly typed operands.

    Of a learning rate that a training loop reads, this leaves the product with the step. What a
    loop makes in each round is stacked up. Other equations stay as they are, and so do those that
    return weakly typed values, and loops that carry some or are given slices of them.
    """
    again = _AGAIN.get(eqn.primitive)
    if again is None:
        return eqn
    is_weak = [not isinstance(atom, Literal) and atom in weak for atom in eqn.invars]
    (body,) = jaxprs_in_params(eqn.params)
    outer, inner = partition(is_weak, eqn.invars)[0], partition(is_weak, body.invars)[0]
    part = _Part.of(body, inner)
    made = part.made
    if _varies(eqn, is_weak) or any(_is_weak(atom) and atom in made for atom in body.outvars):
        return eqn
    fixed, call = part.computes(inner, part.that_reach(body.outvars, body))
    specs = [spec_of(var.aval) for var in (*inner, *fixed)]
    traced = jax.make_jaxpr(partial(again, eqn, call))(*specs).jaxpr
    operands = [*outer, *(Var(var.aval) for var in fixed)]
    standing: dict[Any, Any] = dict(zip(traced.invars, operands, strict=True))
    (short,) = traced.eqns
    return short.replace(invars=[standing[var] for var in short.invars])


def _varies(eqn: Any, is_weak: Sequence[bool]) -> bool:
    """Whether a weakly typed operand is not the same in each round of a loop."""
    return eqn.primitive is primitives.scan_p and any(
        is_weak[jax_compat.scan_layout(eqn.params)[0] :]
    )


def _in_a_loop(eqn: Any, call: Callable[..., Any], *values: Any) -> Any:
    def step(*_: Any) -> Any:
        return None, call(*values)

    return jax.lax.scan(step, None, None, eqn.params["length"])[1]


_AGAIN: dict[Any, Callable[..., Any]] = {
    primitives.scan_p: _in_a_loop,
    primitives.remat_p: lambda _, call, *values: jax.checkpoint(call)(*values),
    primitives.jit_p: lambda _, call, *values: jax.jit(call)(*values),
}
"""How a function is called as an equation of this kind calls its program."""


def _pulled_back(point: Sequence[Var], part: _Part, pulled: Sequence[tuple[Any, Any]]) -> list[Any]:
    """The types of the gradients of some equations, for results and cotangents of these types."""
    fixed, call = part.computes(point, [var for var, _ in pulled])

    def gradient(point: list[Any], fixed: list[Any], cotangents: list[Any]) -> list[Any]:
        pullback = jax_compat.VJP_OF_JAX(lambda *point: call(*point, *fixed), *point)[1]
        return list(pullback(cotangents))

    avals = [var.aval for var in point], [var.aval for var in fixed], [aval for _, aval in pulled]
    specs = [list(map(spec_of, group)) for group in avals]
    return list(jax.make_jaxpr(gradient)(*specs).out_avals)
