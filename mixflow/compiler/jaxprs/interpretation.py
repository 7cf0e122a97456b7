"""One walk over a jaxpr for analyses that tell something of every value.

An analysis gives each value a fact, says what an equation makes of its operands' facts, and how
two facts join where branches meet or a loop comes round. The walk does the rest: it opens what
has a program inside, and goes round a loop until its facts no longer change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from jax.extend.core import Literal

from mixflow.compiler import jax_compat
from mixflow.compiler.primitives import PROGRAM_OF

Fact = TypeVar("Fact")


class Interpretation(ABC, Generic[Fact]):
    """An analysis. Its facts are compared with `==`; joining must come to an end."""

    @abstractmethod
    def constant(self, value: Any) -> Fact:
        """The fact for a literal, or for a constant of a program (then `value` is None)."""

    @abstractmethod
    def leaf(self, eqn: Any, args: list[Fact]) -> list[Fact]:
        """The facts for the results of an equation that has no program inside."""

    @abstractmethod
    def join(self, one: Fact, other: Fact) -> Fact:
        """The fact for a value that may be either of two."""

    def choice(self, eqn: Any, chooser: Fact, results: list[Fact]) -> list[Fact]:
        """The facts for results that a value chooses between: the branch of a cond."""
        del eqn, chooser
        return results

    def program(self, jaxpr: Any, args: Sequence[Fact]) -> list[Fact]:
        """The facts for a program's results, given those of its inputs."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        facts: dict[Any, Fact] = dict(zip(jaxpr.invars, args, strict=True))
        facts.update((var, self.constant(None)) for var in jaxpr.constvars)

        def read(atom: Any) -> Fact:
            return self.constant(atom.val) if isinstance(atom, Literal) else facts[atom]

        for eqn in jaxpr.eqns:
            results = self.equation(eqn, list(map(read, eqn.invars)))
            facts.update(zip(eqn.outvars, results, strict=True))
        return list(map(read, jaxpr.outvars))

    def equation(self, eqn: Any, args: list[Fact]) -> list[Fact]:
        """The facts for an equation's results."""
        name, params = eqn.primitive.name, eqn.params
        if PROGRAM_OF.get(name) in params:
            return self.program(params[PROGRAM_OF[name]], args)
        match name:
            case "cond":
                branches = [self.program(branch, args[1:]) for branch in params["branches"]]
                joined = [self._joined(facts) for facts in zip(*branches, strict=True)]
                return self.choice(eqn, args[0], joined)
            case "scan":
                return self._scan(eqn, args)
            case "while":
                return self._while(eqn, args)
            case _:
                return self.leaf(eqn, args)

    def _joined(self, facts: Sequence[Fact]) -> Fact:
        result = facts[0]
        for fact in facts[1:]:
            result = self.join(result, fact)
        return result

    def _scan(self, eqn: Any, args: list[Fact]) -> list[Fact]:
        start, carried = jax_compat.scan_layout(eqn.params)
        consts, carry, xs = args[:start], args[start : start + carried], args[start + carried :]
        while True:
            results = self.program(eqn.params["jaxpr"], [*consts, *carry, *xs])
            grown = list(map(self.join, carry, results[:carried]))
            if grown == carry:
                return results
            carry = grown

    def _while(self, eqn: Any, args: list[Fact]) -> list[Fact]:
        stop = eqn.params["cond_nconsts"]
        of_cond, rest = args[:stop], args[stop:]
        count = eqn.params["body_nconsts"]
        consts, carry = rest[:count], rest[count:]
        while True:
            results = self.program(eqn.params["body_jaxpr"], [*consts, *carry])
            grown = list(map(self.join, carry, results))
            if grown == carry:
                break
            carry = grown
        (goes_on,) = self.program(eqn.params["cond_jaxpr"], [*of_cond, *carry])
        return self.choice(eqn, goes_on, carry)
