"""Which equations stay away from the points where their derivatives are infinite.

The derivative of `sqrt(x)` is infinite at 0 alone, and in `sqrt(jnp.mean(x ** 2) + 1e-6)` or in the
quotient of a softmax the operand is positive. A walk tells so from how values are made.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np

from mixflow.compiler.jaxprs.interpretation import Interpretation
from mixflow.compiler.primitives import row_of


class Sign(enum.IntEnum):
    """What is known of all entries of a value; more is less."""

    ANY = 0
    NONNEGATIVE = 1
    POSITIVE = 2


class Positivity(Interpretation[Sign]):
    """The walk."""

    def __init__(self) -> None:
        self._met: dict[int, bool] = {}

    @property
    def regular(self) -> set[int]:
        """The equations, by identity, whose derivatives are finite where they were met."""
        return {one for one, is_positive in self._met.items() if is_positive}

    def constant(self, value: Any) -> Sign:
        if value is None or np.iscomplexobj(value):
            return Sign.ANY
        values = np.asarray(value)
        if np.all(values > 0):
            return Sign.POSITIVE
        return Sign.NONNEGATIVE if np.all(values >= 0) else Sign.ANY

    def join(self, one: Sign, other: Sign) -> Sign:
        return min(one, other)

    def leaf(self, eqn: Any, args: list[Sign]) -> list[Sign]:
        position = row_of(eqn).singular_at
        if position is not None:
            is_positive = args[position] is Sign.POSITIVE
            self._met[id(eqn)] = is_positive and self._met.get(id(eqn), True)
        return [_sign(eqn, args)] * len(eqn.outvars)


def _sign(eqn: Any, args: list[Sign]) -> Sign:
    name = eqn.primitive.name
    if row_of(eqn).keeps_sign:
        return args[0] if name in ("gather", "dynamic_slice") else min(args)
    return _RULES[name](eqn, args) if name in _RULES else Sign.ANY


def _of_sum(eqn: Any, args: list[Sign]) -> Sign:
    del eqn
    return Sign.ANY if Sign.ANY in args else max(args)


def _of_product(eqn: Any, args: list[Sign]) -> Sign:
    return Sign.NONNEGATIVE if eqn.invars[0] is eqn.invars[1] else min(args)


def _of_power(eqn: Any, args: list[Sign]) -> Sign:
    is_even = eqn.params["y"] % 2 == 0
    return max(args[0], Sign.NONNEGATIVE) if is_even else args[0]


_RULES: dict[str, Callable[[Any, list[Sign]], Sign]] = {
    **dict.fromkeys(("exp", "exp2", "logistic", "cosh"), lambda eqn, args: Sign.POSITIVE),
    **dict.fromkeys(("square", "abs"), lambda eqn, args: max(args[0], Sign.NONNEGATIVE)),
    "add": _of_sum,
    "max": lambda eqn, args: max(args),
    "mul": _of_product,
    "div": lambda eqn, args: min(args) if args[1] is Sign.POSITIVE else Sign.ANY,
    "integer_pow": _of_power,
    "select_n": lambda eqn, args: min(args[1:]),
}
