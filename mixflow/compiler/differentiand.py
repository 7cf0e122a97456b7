"""The function that a symbolic derivative is a derivative of, and flat lists of its values."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Var, jaxpr_as_fun

from mixflow.compiler import jax_compat

Values = Sequence[Any]
TreeDef = Any  # jax.tree_util.PyTreeDef has no type stub


class Rule(enum.Enum):
    """How the pullback of a pullback is taken (`docs/derivative-rule.md`)."""

    PLAIN = "plain"
    """As JAX does: reverse over reverse."""
    SYMMETRIC = "symmetric"
    """As the pushforward of the pullback: forward over reverse."""
    TRANSPOSED = "transposed"
    """As the pullback of the pushforward: reverse over forward."""


@dataclass(frozen=True)
class Suspect:
    """Something in a function that speaks against a derivative rule.

    Arguments:
        name: the function's or primitive's name, as `assume_symmetric` takes it.
        at: the user's `file:line` of the call, or of the function where JAX kept no traceback.
        why: one clause for the report.
    """

    name: str
    at: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.at}): {self.why}"


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
        spelled: the plain programs of its derivatives that were asked for.
    """

    jaxpr: ClosedJaxpr
    num_consts: int
    carries: tuple[bool, ...]
    soundness: Soundness
    chosen: Rule | None = None
    custom: bool = False
    retyped: bool = False
    batched: dict[Any, Differentiand | None] = field(default_factory=dict, init=False, repr=False)
    spelled: dict[Any, ClosedJaxpr] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def call(self) -> Callable[..., list[Any]]:
        """f as a Python function of the flat c and x."""
        return jaxpr_as_fun(self.jaxpr)

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


def one_equation(eqn: Any) -> Callable[..., list[Any]]:
    """An equation as a Python function of its operands.

    It raises ValueError where a custom rule's value is not of the shape that the equation says.
    """
    invars = [Var(atom.aval) for atom in eqn.invars]
    outvars = [Var(var.aval) for var in eqn.outvars]
    debug_info = DebugInfo("mixflow", eqn.primitive.name, ("",) * len(invars), ("",) * len(outvars))
    moved = eqn.replace(invars=invars, outvars=outvars)
    jaxpr = Jaxpr([], invars, outvars, [moved], eqn.effects, debug_info=debug_info)
    run = jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))

    def call(*operands: Any) -> list[Any]:
        results = run(*operands)
        for result, var in zip(results, eqn.outvars, strict=True):
            if jnp.shape(result) != var.aval.shape:
                raise ValueError(f"{eqn.primitive} gives {jax.typeof(result)} for {var.aval}")
        return results

    return call


def named_after(fun: Callable[..., Any]) -> Callable[[Any], Any]:
    """Let JAX's messages speak of the user's function instead of a wrapper around it."""

    def rename(wrapper: Any) -> Any:
        wrapper.__name__ = getattr(fun, "__name__", "function")
        wrapper.__wrapped__ = fun
        return wrapper

    return rename


def partition(mask: Sequence[bool], items: Values) -> tuple[list[Any], list[Any]]:
    """The items where the mask is true, and the others."""
    chosen = [item for keep, item in zip(mask, items, strict=True) if keep]
    return chosen, [item for keep, item in zip(mask, items, strict=True) if not keep]


def merge(mask: Sequence[bool], chosen: Values, others: Values) -> list[Any]:
    """Undo `partition`."""
    first, second = iter(chosen), iter(others)
    return [next(first) if keep else next(second) for keep in mask]


def is_inexact(aval: Any) -> bool:
    """Whether a value of this type has a derivative at all."""
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def spec_of(aval: Any) -> jax.ShapeDtypeStruct:
    """A type as JAX traces functions at it: with its sharding and the mesh axes it varies over."""
    return jax.ShapeDtypeStruct(
        aval.shape,
        aval.dtype,
        sharding=aval.sharding,
        weak_type=aval.weak_type,
        manual_axis_type=aval.manual_axis_type,
    )


def as_arrays(values: Values) -> list[Any]:
    """The values, NumPy's as JAX's: a custom rule may return such, and no jaxpr may hold one."""
    return [jnp.asarray(v) if isinstance(v, (np.ndarray, np.generic)) else v for v in values]


def spread(mask: Sequence[bool], items: Values) -> list[Any]:
    """The items in the places where the mask is true, None elsewhere."""
    return merge(mask, items, [None] * (len(mask) - sum(mask)))
