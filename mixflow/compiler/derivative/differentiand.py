"""The function that a symbolic derivative is a derivative of."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakValueDictionary

from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.sharing import with_shared_code
from mixflow.compiler.jaxprs.structure import structure_of
from mixflow.compiler.jaxprs.values import Values, as_arrays, merge, partition
from mixflow.compiler.rules.suspects import Suspect


class Rule(enum.Enum):
    """How the pullback of a pullback is taken (`docs/derivative-rule.md`)."""

    PLAIN = "plain"
    """As JAX does: reverse over reverse."""
    SYMMETRIC = "symmetric"
    """As the pushforward of the pullback: forward over reverse."""
    TRANSPOSED = "transposed"
    """As the pullback of the pushforward: reverse over forward."""


class Soundness(Protocol):
    """What speaks against each derivative rule for one function."""

    @property
    def suspects(self) -> tuple[Suspect, ...]:
        """What speaks against the symmetric rule, whatever is differentiated again."""
        ...

    @property
    def obstacles(self) -> tuple[Suspect, ...]:
        """What speaks against the transposed rule."""
        ...

    @property
    def rests(self) -> bool:
        """Whether f holds a rule with a value of its own that no tangent of x reaches."""
        ...

    @property
    def is_linear(self) -> bool:
        """Whether all rules in f, reached by x or not, are proved to be linear."""
        ...

    def singular(self, active: Sequence[bool], *, aux: bool) -> tuple[Suspect, ...]:
        """What speaks against the symmetric rule where the marked inputs are differentiated in."""
        ...

    def without_singular(self, jaxpr: ClosedJaxpr, active: Sequence[bool]) -> Any:
        """f with what can be taken out of it for the symmetric rule, or None."""
        ...

    def of_split(self, split: Any) -> Soundness:
        """The same of f without what was taken out of it."""
        ...


class _Spelled(dict[Any, ClosedJaxpr]):
    """A dict that lives as long as a function that asks for it."""


_SPELLED: WeakValueDictionary[Hashable, _Spelled] = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class Differentiand:
    """The function that an equation differentiates. Two are equal when they are one object.

    Arguments:
        jaxpr: f, closed and without constants; its inputs are c, then x.
        num_consts: the number of inputs that belong to c.
        carries: for each output of f, whether a cotangent is given for it. Auxiliary and
            integer outputs have none and are never differentiated in reverse.
        soundness: which rules are allowed for it. Asked for when a rule is needed: it may take a
            trace.
        chosen: how the pullback of its pullback is taken, where a pass has chosen.
        custom: whether f holds custom rules that mixflow does not know, vouched for or not, or
            another rule that may change f's value.
        retyped: whether those make its value, or its gradient for cotangents that are not weakly
            typed, more or less weakly typed than the function is.
        batched: `vmap f` for each pattern of mapped constants that was met; None where its custom
            rules could not be run.
    """

    jaxpr: ClosedJaxpr
    num_consts: int
    carries: tuple[bool, ...]
    soundness: Soundness
    chosen: Rule | None = None
    custom: bool = False
    retyped: bool = False
    batched: dict[Any, Differentiand | None] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def structure_key(self) -> Hashable:
        """The same for functions that are differentiated alike, if no rule tells them apart."""
        if self.custom or self.chosen is None:
            return object()
        return structure_of(self.jaxpr), self.num_consts, self.carries, self.chosen, self.retyped

    @cached_property
    def spelled(self) -> dict[Any, ClosedJaxpr]:
        """The plain programs of its derivatives that were asked for; equal functions share them."""
        return _SPELLED.setdefault(self.structure_key, _Spelled())

    @cached_property
    def call(self) -> Callable[..., list[Any]]:
        """f as a Python function of the flat c and x."""
        return jaxpr_as_fun(with_shared_code(self.jaxpr))

    @property
    def suspects(self) -> tuple[Suspect, ...]:
        """What speaks against the symmetric rule, for the report."""
        return self.soundness.suspects

    @cached_property
    def rule(self) -> Rule:
        """How the pullback of its pullback is taken: as chosen, or the first allowed."""
        if self.chosen is not None:
            return self.chosen
        active = [True] * len(self.jaxpr.in_avals)
        if not self.suspects and not self.soundness.singular(active, aux=True):
            return Rule.SYMMETRIC
        return Rule.PLAIN if self.soundness.obstacles else Rule.TRANSPOSED

    @property
    def num_points(self) -> int:
        """The number of leaves of x."""
        return len(self.jaxpr.in_avals) - self.num_consts

    @property
    def point_avals(self) -> list[Any]:
        """The abstract values of x."""
        return self.jaxpr.in_avals[self.num_consts :]

    def split(self, operands: Values) -> tuple[list[Any], list[Any], list[Any]]:
        """Cut a flat list of operands into c, x and w."""
        stop = self.num_consts + self.num_points
        return (
            list(operands[: self.num_consts]),
            list(operands[self.num_consts : stop]),
            list(operands[stop:]),
        )

    def value_and_pullback(self, consts: Values, point: Values) -> tuple[list[Any], Any]:
        """JAX's own `vjp` of f in x: the outputs of f, and a function of the flat w."""

        def carried(*point: Any) -> tuple[list[Any], list[Any]]:
            return partition(self.carries, self.call(*consts, *point))

        outputs, pullback, rest = jax_compat.VJP_OF_JAX(carried, *point, has_aux=True)
        values = as_arrays(merge(self.carries, outputs, rest))
        return values, lambda cotangents: as_arrays(pullback(list(cotangents)))

    def value_and_gradient(self, consts: Values, point: Values) -> Any:
        """f and the pullback of its own outputs: any cotangents would do to try f's rules."""
        outputs, pullback = self.value_and_pullback(consts, point)
        return outputs, pullback(partition(self.carries, outputs)[0])

    def gradient(self, consts: Values, point: Values) -> Any:
        """The second of `value_and_gradient`."""
        return self.value_and_gradient(consts, point)[1]
