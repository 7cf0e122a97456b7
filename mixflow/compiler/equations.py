"""Equations of a jaxpr replaced one by one, however deep they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

Rewrite = Callable[[Any], list[Any]]
"""From an equation to those that stand in its place; itself where nothing is to be done."""

_OPENED = frozenset(
    {"scan", "while", "cond", "jit", "pjit", "closed_call", "checkpoint", "remat", "remat2"}
)
"""Equations whose programs are looked into. Custom rules keep theirs."""


def rewrite_equations(closed: ClosedJaxpr, rewrite: Rewrite) -> ClosedJaxpr:
    """The same program with each equation replaced; programs inside of equations come first.

    Arguments:
        closed: any program.
        rewrite: is given every equation once; what it returns computes the same results.
    """
    return ClosedJaxpr(_Rewriting(rewrite).jaxpr(closed.jaxpr), closed.consts)


class _Rewriting:
    """One program; a jaxpr that stands in it several times stays one."""

    def __init__(self, rewrite: Rewrite) -> None:
        self._rewrite = rewrite
        self._done: dict[int, tuple[Any, Any]] = {}

    def jaxpr(self, jaxpr: Jaxpr) -> Jaxpr:
        """A jaxpr, and those inside it."""
        if id(jaxpr) not in self._done:
            eqns = [new for eqn in jaxpr.eqns for new in self._rewrite(self._opened(eqn))]
            # The key is an identity: what it belongs to must not be freed meanwhile.
            self._done[id(jaxpr)] = jaxpr, jaxpr.replace(eqns=eqns)
        return self._done[id(jaxpr)][1]

    def _opened(self, eqn: Any) -> Any:
        if eqn.primitive.name not in _OPENED:
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
