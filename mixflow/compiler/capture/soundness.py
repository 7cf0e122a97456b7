"""Which derivative rule is allowed for a function.

The symmetric rule (forward over reverse) rests on symmetric second derivatives, and so on the
reverse-mode program of f being the gradient of ⟨f, w⟩. A rule that is not the derivative can break
that: straight-through estimators, clipped or reversed gradients, implicit rules, and some of JAX's
own primitives. Trust in custom rules is therefore an explicit list, matched by the identity of
the rule itself, and trust in primitives a column of their table; all others make f suspect.
`stop_gradient` needs no care: it blocks the same paths at every order.

The transposed rule (reverse over forward) needs no symmetry. It needs that JAX's reverse mode is
the transposition of its forward mode, and so that each custom rule is linear, which is proved.

Both look only at what a tangent of the point reaches: nothing else is differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxprs_in_params, primitives
from jax.interpreters.partial_eval import dce_jaxpr

from mixflow.compiler.derivative.differentiand import Differentiand
from mixflow.compiler.derivative.transposed_rule import forward_function
from mixflow.compiler.jaxprs.equations import inline_jits
from mixflow.compiler.jaxprs.subprograms import nested_jaxprs
from mixflow.compiler.jaxprs.values import is_inexact, spec_of
from mixflow.compiler.recording import paused
from mixflow.compiler.rules.linearity import optimizes_remat
from mixflow.compiler.rules.positivity import Positivity, Sign
from mixflow.compiler.rules.reach import Reach, reach_of, reached_equations
from mixflow.compiler.rules.split import Split, split_off
from mixflow.compiler.rules.suspects import (
    Suspect,
    custom_rules,
    is_custom,
    is_finite,
    is_true,
    named,
    other_values,
    suspect,
    why_not_transposed,
)


class FunctionSoundness:
    """What speaks against each rule for one function f, found when it is asked for.

    Arguments:
        jaxpr: f's; its inputs are c, then x.
        num_consts: the number of inputs that belong to c.
        carries: for each output of f, whether a cotangent is given for it.
        trusts: whether the user vouches for the custom rule of the function with a name.
    """

    def __init__(
        self,
        jaxpr: ClosedJaxpr,
        num_consts: int,
        carries: tuple[bool, ...],
        trusts: Callable[[str], bool],
    ) -> None:
        custom = any(other_values(jaxpr.eqns))
        self.function = Differentiand(jaxpr, num_consts, carries, self, custom=custom)
        self._jaxpr = jaxpr
        self._num_consts = num_consts
        self._trusts = trusts

    @cached_property
    def optimizes_remat(self) -> bool:
        """Whether a rule of f, in a program inside of f, was given with `optimize_remat`."""
        if not self.function.custom:
            return False
        inside = (inner for eqn in self._jaxpr.eqns for inner in nested_jaxprs(eqn))
        rules = (rule for inner in inside for rule in custom_rules(inner))
        return any(map(optimizes_remat, rules))

    @property
    def _moving(self) -> list[bool]:
        """For each input, whether it belongs to the point."""
        return [position >= self._num_consts for position in range(len(self._jaxpr.in_avals))]

    @cached_property
    def _reach(self) -> Reach:
        return reach_of(self._jaxpr, self._moving)

    @property
    def _reached(self) -> list[Any]:
        return self._reach.found

    @property
    def suspects(self) -> tuple[Suspect, ...]:
        """Rules that may be no true derivative, each once, and that the point reaches.

        Those inside a nested symbolic derivative count: f is suspect when a loss inside it is.
        """
        return self._suspects

    @property
    def obstacles(self) -> tuple[Suspect, ...]:
        """Rules that are not proved to be linear, each once, and that the point reaches."""
        return self._obstacles

    @property
    def rests(self) -> bool:
        """Whether f holds a rule with a value of its own that no tangent of the point reaches."""
        return self._rests

    @property
    def is_linear(self) -> bool:
        """Whether all custom rules in f, reached by the point or not, are proved to be linear."""
        return self._is_linear

    @cached_property
    def _is_linear(self) -> bool:
        rules = [one for one in (*self._reached, *self._reach.resting) if is_custom(one)]
        with paused():
            return all(why_not_transposed(one) is None for one in rules)

    @cached_property
    def _rests(self) -> bool:
        return any(other_values(self._reach.resting))

    @cached_property
    def _suspects(self) -> tuple[Suspect, ...]:
        with paused():
            found = dict.fromkeys(suspect(one) for one in self._reached if not is_true(one))
            suspects = tuple(one for one in found if not self._trusts(one.name))
            if suspects or not found or self._has_forward_gradient:
                return suspects
        why = "you vouch for it, but it has no forward mode: its rule calls a custom_vjp"
        return tuple(replace(suspect, why=why) for suspect in found)

    @cached_property
    def _obstacles(self) -> tuple[Suspect, ...]:
        with paused():
            # Of what rests as well: JAX pulls the sum of all its cotangents back through it, those
            # of a loop's steps and of a gradient inside f included. Here each would be by itself.
            rests = [one for one in self._reach.resting if is_custom(one)]
            reasons = [(one, why_not_transposed(one)) for one in (*self._reached, *rests)]
            why = "JAX has no second derivative of it in one of its arguments"
            reasons += [(one, why) for one in self._reach.once]
            found = tuple(dict.fromkeys(named(one, why) for one, why in reasons if why is not None))
            if found or self._has_forward_mode:
                return found
        why = "a gradient inside of the function has a rule that has no forward mode"
        return (Suspect("custom_vjp", "<unknown>", why),)

    def singular(self, active: Sequence[bool], *, aux: bool) -> tuple[Suspect, ...]:
        """Derivatives that may be infinite or unknown, and that plain JAX takes only once.

        They are those on the paths of the constants alone, and those that only an auxiliary output
        is computed with. The symmetric rule meets them with cotangents that are zero, and zero
        times an infinite derivative is no number. Examples: the loss `fit(x) + jnp.sum(
        jnp.sqrt(c))` at `c = 0`, and `jnp.abs(x) ** 1.5` as auxiliary data at `x = 0`.

        Arguments:
            active: for each input, whether the outer differentiation reaches it.
            aux: whether it reaches an auxiliary output.
        """
        program = self._jaxpr.jaxpr if aux else self._live
        once = reached_equations(program, active)
        if aux:
            once += reached_equations(program, self._moving)
        twice = {var for one in reached_equations(self._live, self._moving) for var in one.outvars}
        regular = _regular(program)
        why = "its derivative may be infinite or unknown, and plain JAX takes it only once"
        with paused():
            found = [
                one
                for one in once
                if twice.isdisjoint(one.outvars) and id(one) not in regular and not is_finite(one)
            ]
        return tuple(dict.fromkeys(named(one, why) for one in found))

    def without_singular(self, jaxpr: ClosedJaxpr, active: Sequence[bool]) -> Split | None:
        """f with what is singular on the paths of the constants taken out of it, if that is all.

        Arguments:
            jaxpr: f's, as passes may have left it.
            active: for each input, whether the outer differentiation reaches it.
        """
        for one in (jaxpr, inline_jits(jaxpr)):
            split = self._without_singular(one, active)
            if split is not None:
                return split
        return None

    def _without_singular(self, jaxpr: ClosedJaxpr, active: Sequence[bool]) -> Split | None:
        regular = _regular(jaxpr)

        def is_taken(eqn: Any) -> bool:
            inner = Reach()
            inner.equation(eqn, [is_inexact(atom.aval) for atom in eqn.invars])
            # A while loop has no reverse mode. Inside of f nobody asks for one; outside JAX would.
            loops = any(one.primitive.name == "while" for one in inner.found)
            return not loops and not all(
                id(one) in regular or is_finite(one) for one in inner.found
            )

        with paused():
            split = split_off(jaxpr, self._num_consts, active, is_taken)
        if split is None:
            return None
        start, taken = self._num_consts, [True] * split.num_taken
        rest = self.of_split(split).singular([*active[:start], *taken, *active[start:]], aux=False)
        return None if rest else split

    def of_split(self, split: Split) -> FunctionSoundness:
        """The same of f without what was taken out of it."""
        num_consts = self._num_consts + split.num_taken
        return FunctionSoundness(split.inside, num_consts, self.function.carries, self._trusts)

    @cached_property
    def _live(self) -> Any:
        """f without what only auxiliary outputs need. Equations in it may be copies of f's."""
        return dce_jaxpr(self._jaxpr.jaxpr, list(self.function.carries), instantiate=True)[0]

    @property
    def _has_forward_gradient(self) -> bool:
        """Whether the gradient has a pushforward, which the symmetric rule asks for."""
        split = self._num_consts

        def gradient(*inputs: Any) -> Any:
            return self.function.gradient(inputs[:split], inputs[split:])

        return self._can_be_pushed(gradient)

    @property
    def _has_forward_mode(self) -> bool:
        """Whether f has a pushforward, where a gradient inside of it has custom rules."""
        if not _holds_custom_derivative(self._jaxpr.jaxpr):
            return True
        return self._can_be_pushed(forward_function(self.function))

    def _can_be_pushed(self, call: Callable[..., Any]) -> bool:
        """Whether a function of f's inputs has a pushforward in the point."""

        def push(*inputs: Any) -> Any:
            consts, point = inputs[: self._num_consts], inputs[self._num_consts :]
            return jax.jvp(lambda *point: call(*consts, *point), point, point)

        try:
            jaxpr = jax.make_jaxpr(push)(*map(spec_of, self._jaxpr.in_avals))
        except TypeError:
            return False
        live, _ = dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
        return not _holds_one_way_rule(live)


def _regular(jaxpr: Any) -> set[int]:
    """The equations, by identity, that stay away from where their derivatives are infinite."""
    walk = Positivity()
    walk.program(jaxpr, [Sign.ANY] * len(getattr(jaxpr, "jaxpr", jaxpr).invars))
    return walk.regular


def _holds_custom_derivative(jaxpr: Any) -> bool:
    """Whether a symbolic derivative of a function with custom rules stands anywhere in a jaxpr."""
    return any(
        getattr(equation.params.get("function"), "custom", False)
        or any(map(_holds_custom_derivative, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


def _holds_one_way_rule(jaxpr: Any) -> bool:
    """Whether a custom_vjp was pushed forward; JAX only says so when it lowers the program."""
    return any(
        equation.primitive is primitives.custom_lin_p
        or any(map(_holds_one_way_rule, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )
