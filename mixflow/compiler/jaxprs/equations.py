"""Equations of a jaxpr replaced, one by one or a jaxpr's all at once, however deep they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, Var, jaxpr_as_fun
from jax.tree_util import tree_leaves, tree_structure, tree_unflatten

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.values import Values, spec_of
from mixflow.compiler.primitives import OPENED

Rewrite = Callable[[Any], list[Any]]
"""From an equation to those that stand in its place; itself where nothing is to be done."""

Push = Callable[[Values, Values], tuple[Values, Values]]
"""From values and their tangents to results and theirs."""


def variables(atoms: Iterable[Any]) -> list[Var]:
    """Those of an equation's operands, or of a jaxpr's results, that are no literals."""
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def variables_read(jaxpr: Jaxpr) -> set[Var]:
    """What the equations of a jaxpr read, and what it returns."""
    read = {var for eqn in jaxpr.eqns for var in variables(eqn.invars)}
    return read.union(variables(jaxpr.outvars))


def jaxpr_of(invars: Sequence[Any], outvars: Sequence[Any], eqns: Sequence[Any]) -> Jaxpr:
    """A jaxpr of equations that are there already."""
    effects = frozenset(effect for eqn in eqns for effect in eqn.effects)
    debug_info = DebugInfo("mixflow", "equations", ("",) * len(invars), ("",) * len(outvars))
    return Jaxpr([], list(invars), list(outvars), list(eqns), effects, debug_info=debug_info)


def rewrite_equations(
    closed: ClosedJaxpr, rewrite: Rewrite, also: frozenset[str] = frozenset()
) -> ClosedJaxpr:
    """The same program with each equation replaced; programs inside of equations come first.

    Arguments:
        closed: any program.
        rewrite: is given every equation once; what it returns computes the same results.
        also: names of further equations whose programs are looked into.
    """

    def whole(jaxpr: Jaxpr) -> Jaxpr:
        eqns = [new for eqn in jaxpr.eqns for new in rewrite(eqn)]
        return jax_compat.with_equations(jaxpr, eqns)

    return ClosedJaxpr(_Rewriting(whole, OPENED | also).jaxpr(closed.jaxpr), closed.consts)


def rewrite_jaxprs(closed: ClosedJaxpr, rewrite: Callable[[Jaxpr], Jaxpr]) -> ClosedJaxpr:
    """The same program with each of its jaxprs replaced; those inside of equations come first.

    Arguments:
        closed: any program.
        rewrite: is given every jaxpr once; what it returns computes the same results.
    """
    return ClosedJaxpr(_Rewriting(rewrite, OPENED).jaxpr(closed.jaxpr), closed.consts)


class _Rewriting:
    """One program; a jaxpr that stands in it several times stays one."""

    def __init__(self, rewrite: Callable[[Jaxpr], Jaxpr], opened: frozenset[str]) -> None:
        self._rewrite = rewrite
        self._names = opened
        self._done: dict[int, tuple[Any, Any]] = {}

    def jaxpr(self, jaxpr: Jaxpr) -> Jaxpr:
        """A jaxpr, and those inside it."""
        if id(jaxpr) not in self._done:
            opened = jaxpr.replace(eqns=list(map(self._opened, jaxpr.eqns)))
            # The key is an identity: what it belongs to must not be freed meanwhile.
            self._done[id(jaxpr)] = jaxpr, self._rewrite(opened)
        return self._done[id(jaxpr)][1]

    def _opened(self, eqn: Any) -> Any:
        if eqn.primitive.name not in self._names:
            return eqn
        return eqn.replace(params={key: self._param(v) for key, v in eqn.params.items()})

    def _param(self, value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return self._closed(value)
        if isinstance(value, Jaxpr):
            return self.jaxpr(value)
        if isinstance(value, tuple) and value and isinstance(value[0], ClosedJaxpr):
            return tuple(map(self._closed, value))
        return value

    def _closed(self, closed: ClosedJaxpr) -> ClosedJaxpr:
        if id(closed) not in self._done:
            self._done[id(closed)] = closed, ClosedJaxpr(self.jaxpr(closed.jaxpr), closed.consts)
        return self._done[id(closed)][1]


def run_rewritten(
    function: Callable[..., Any], rewrite: Callable[[ClosedJaxpr], ClosedJaxpr], *args: Any
) -> Any:
    """What a function returns, computed by the program that its own is rewritten to.

    Arguments:
        function: of pytrees of arrays, to one.
        rewrite: from a program to another with the same results.
        args: of the function.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    results = jaxpr_as_fun(rewrite(closed))(*tree_leaves(args))
    return tree_unflatten(tree_structure(shapes), results)


def as_custom_jvp(
    function: Callable[..., Any], push: Push, invars: list[Any], outvars: list[Any]
) -> Any:
    """An equation that computes a function, and that forward mode takes `push` for.

    Arguments:
        function: of flat arrays, to a list of arrays.
        push: from its arguments and their tangents, some symbolic zeros, to results and tangents.
        invars: what the equation reads, an atom for each argument.
        outvars: what it defines, a variable for each result.
    """
    call = jax.custom_jvp(function)
    call.defjvp(push, symbolic_zeros=True)
    (made,) = jax.make_jaxpr(call)(*(spec_of(atom.aval) for atom in invars)).jaxpr.eqns
    return made.replace(invars=invars, outvars=outvars)


def inline_jits(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same program with the equations of its jits in their place.

    Arguments:
        closed: any program. A jit that says how its values are sharded stays.
    """
    return ClosedJaxpr(without_jits(closed.jaxpr), closed.consts)


def without_jits(jaxpr: Jaxpr) -> Jaxpr:
    """As `inline_jits`, for a jaxpr alone."""
    eqns, values = list[Any](), dict[Any, Any]()
    _inline(jaxpr.eqns, values, eqns)
    outvars = [_value(values, atom) for atom in jaxpr.outvars]
    return jaxpr.replace(eqns=eqns, outvars=outvars)


def _inline(eqns: list[Any], values: dict[Any, Any], found: list[Any]) -> None:
    """Add equations to those found so far; `values` says what stands for a variable by now."""
    for eqn in eqns:
        operands = [_value(values, atom) for atom in eqn.invars]
        if not _is_open(eqn):
            outvars = [Var(var.aval) for var in eqn.outvars]
            values.update(zip(eqn.outvars, outvars, strict=True))
            found.append(eqn.replace(invars=operands, outvars=outvars))
            continue
        inner = eqn.params["jaxpr"].jaxpr
        scope = dict(zip(inner.invars, operands, strict=True))
        _inline(inner.eqns, scope, found)
        values.update(
            (var, _value(scope, atom)) for var, atom in zip(eqn.outvars, inner.outvars, strict=True)
        )


def _value(values: dict[Any, Any], atom: Any) -> Any:
    return atom if isinstance(atom, Literal) else values.get(atom, atom)


def _is_open(eqn: Any) -> bool:
    if eqn.primitive.name != "jit" or getattr(eqn.params["jaxpr"], "consts", ()):
        return False
    shardings = (*eqn.params["in_shardings"], *eqn.params["out_shardings"])
    return all(type(one).__name__ == "UnspecifiedValue" for one in shardings)
