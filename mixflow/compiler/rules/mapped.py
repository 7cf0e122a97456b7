"""Which values of a function `jax.vmap` maps, and what that does to its custom rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixflow.compiler.jaxprs.interpretation import Interpretation
from mixflow.compiler.jaxprs.values import is_inexact
from mixflow.compiler.primitives import CUSTOM_RULES


def shares_results(jaxpr: Any, mapped: Sequence[bool]) -> bool:
    """Whether a `custom_vjp` that is mapped has a result that is not.

    All lanes share such a result. In the pullback of `vmap f` the rule is given the sum of their
    cotangents for it, and each lane gets the others' as well: with `f(x, c) = (x, c)`, where x is
    mapped and c is not, and the rule `lambda g: g[0] + g[1]`. In the `vmap` of f's pullback each
    lane has its own.

    Arguments:
        jaxpr: closed or open.
        mapped: for each input, whether it is mapped.
    """
    walk = _Mapped()
    walk.program(jaxpr, list(mapped))
    return walk.shares


class _Mapped(Interpretation[bool]):
    """The walk. What is computed from a mapped value is mapped."""

    def __init__(self) -> None:
        self.shares = False

    def constant(self, value: Any) -> bool:
        del value
        return False

    def join(self, one: bool, other: bool) -> bool:
        return one or other

    def choice(self, eqn: Any, chooser: bool, results: list[bool]) -> list[bool]:
        del eqn
        return [chooser or result for result in results]

    def leaf(self, eqn: Any, args: list[bool]) -> list[bool]:
        if eqn.primitive.name not in CUSTOM_RULES or not any(args):
            return [any(args)] * len(eqn.outvars)
        results = self.program(eqn.params["call_jaxpr"], args)
        if eqn.primitive.name == "custom_vjp_call":
            carried = zip(results, eqn.outvars, strict=True)
            self.shares |= not all(flag for flag, var in carried if is_inexact(var.aval))
        return results
