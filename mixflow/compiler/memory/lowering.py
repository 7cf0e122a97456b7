"""From jaxprs to regions of values: calls are inlined, loops and branches become nested regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from jax.extend.core import ClosedJaxpr, Literal, Var, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.spelling import spell_out
from mixflow.compiler.derivative.vjp_primitive import SYMBOLIC
from mixflow.compiler.jaxprs.equations import variables_read
from mixflow.compiler.memory.dataflow import Graph, Kind, Nested, Value, live_values
from mixflow.compiler.memory.operations import leaf
from mixflow.compiler.memory.scope import Scope
from mixflow.compiler.primitives import CUSTOM_RULES, PROGRAM_OF

CALLS = CUSTOM_RULES | PROGRAM_OF.keys() | {"composite"}
"""Equations that run the program inside them, once and on their own operands."""

_LOWERED: WeakKeyDictionary[ClosedJaxpr, Graph] = WeakKeyDictionary()


def lower(closed: ClosedJaxpr) -> Graph:
    """A whole program as a region, symbolic derivatives spelled out.

    Raises:
        NameError: a symbolic derivative over a mesh axis, which cannot be spelled out.
    """
    if closed not in _LOWERED:
        jaxpr = _with_arguments_only(closed.jaxpr)
        _LOWERED[closed] = Lowering().branch(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])
    return _LOWERED[closed]


def _with_arguments_only(jaxpr: Any) -> Any:
    """A jaxpr whose constants are arguments."""
    return jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])


class Lowering:
    """Lowers one program; a jaxpr that stands in it several times is lowered once."""

    def __init__(self) -> None:
        self._bodies: dict[tuple[int, int, int], Graph] = {}
        self._kept: list[Any] = []  # identities are keys: nothing may be freed meanwhile

    def branch(self, jaxpr: Any) -> Graph:
        """A whole program, or one branch: results go to memory of the caller's."""
        scope = Scope()
        inputs = [scope.source(var.aval) for var in (*jaxpr.constvars, *jaxpr.invars)]
        outputs = _Run(self, scope).jaxpr(_with_arguments_only(jaxpr), inputs)
        return _region(scope, outputs, [])

    def body(self, jaxpr: Any, start: int, carried: int) -> Graph:
        """A loop's body; `carried` operands after the first `start` go round.

        What comes after those are slices of stacked arrays, and so are results after them.
        """
        key = (id(jaxpr), start, carried)
        if key not in self._bodies:
            self._kept.append(jaxpr)
            self._bodies[key] = self._body(_with_arguments_only(jaxpr), start, start + carried)
        return self._bodies[key]

    def _body(self, jaxpr: Any, start: int, stop: int) -> Graph:
        scope = Scope(is_loop=True)
        inputs = [
            scope.source(var.aval, invariant=position < start)
            for position, var in enumerate(jaxpr.invars)
        ]
        slices = [scope.add(Kind.MOVE, (x,), x, "dynamic_slice") for x in inputs[stop:]]
        results = _Run(self, scope).jaxpr(jaxpr, [*inputs[:stop], *slices])
        carried = results[: stop - start]
        stacked = [
            scope.add(Kind.UPDATE, (value,), value, "stacked", value.eqn)
            for value in results[stop - start :]
        ]
        return _region(scope, stacked, list(zip(inputs[start:stop], carried, strict=True)))


def _region(scope: Scope, outputs: list[Value], carries: list[tuple[Value, Value]]) -> Graph:
    effects = [value for value in scope.values if value.eqn is not None and value.eqn.effects]
    roots = [*effects, *outputs, *(value for pair in carries for value in pair)]
    return Graph(live_values(scope.values, roots), outputs, carries)


class _Run:
    """Lowers the equations of one region, those of inlined calls among them."""

    def __init__(self, lowering: Lowering, scope: Scope) -> None:
        self._lowering = lowering
        self._scope = scope

    def jaxpr(self, jaxpr: Any, inputs: list[Value]) -> list[Value]:
        """The values of a jaxpr's results."""
        env: dict[Var, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        env.update((var, self._scope.source(var.aval)) for var in jaxpr.constvars)
        used = variables_read(jaxpr)

        def read(atom: Any) -> Value:
            return self._scope.literal(atom) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars], used)
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, args: list[Value], used: set[Var]) -> list[Value]:
        name = eqn.primitive.name
        if eqn.primitive in SYMBOLIC:
            return self._derivative(eqn, args, [var in used for var in eqn.outvars])
        if name in CALLS:
            held = self._barrier(eqn, args) if _holds_back(eqn) else args
            return self.jaxpr(next(iter(jaxprs_in_params(eqn.params))), held)
        rules: dict[str, Callable[[Any, list[Value]], list[Value]]] = {
            "optimization_barrier": self._barrier,
            "scan": self._scan,
            "while": self._while,
            "cond": self._cond,
        }
        return rules[name](eqn, args) if name in rules else leaf(self._scope, eqn, args)

    def _derivative(self, eqn: Any, args: list[Value], used: list[bool]) -> list[Value]:
        closed = spell_out(eqn)
        consts = [self._scope.source(var.aval) for var in closed.jaxpr.constvars]
        opened = _with_arguments_only(closed.jaxpr)
        jaxpr, kept = dce_jaxpr(opened, used)
        inputs = [arg for arg, keep in zip([*consts, *args], kept, strict=True) if keep]
        results = iter(self.jaxpr(jaxpr, inputs))
        return [next(results) if keep else self._scope.source(None) for keep in used]

    def _barrier(self, eqn: Any, args: list[Value]) -> list[Value]:
        barrier = self._scope.add(Kind.BARRIER, tuple(args), None, "optimization_barrier", eqn)
        return [self._scope.part(barrier, arg, shares=arg) for arg in args]

    # --- control flow --------------------------------------------------------------------------

    def _scan(self, eqn: Any, args: list[Value]) -> list[Value]:
        start, carried = jax_compat.scan_layout(eqn.params)
        jaxpr, length = next(iter(jaxprs_in_params(eqn.params))), eqn.params["length"]
        if length == 1:  # XLA takes the body out of the loop
            return self.jaxpr(jaxpr, args)
        region = self._lowering.body(jaxpr, start, carried)
        stacks = [self._stack(eqn, var.aval) for var in eqn.outvars[carried:]]
        trips = length if isinstance(length, int) else None
        return self._loop(eqn, args, (start, carried), Nested((region,), trips), stacks)

    def _stack(self, eqn: Any, aval: Any) -> Value:
        """The buffer that a scan stacks a result in: a copy of zeros, one for each type."""
        zero = self._scope.scalar(0, aval.dtype)
        zeros = self._scope.once(Kind.BROADCAST, (zero,), aval, "empty", eqn)
        return self._scope.add(Kind.UPDATE, (zeros,), aval, "copy", eqn)

    def _while(self, eqn: Any, args: list[Value]) -> list[Value]:
        first, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        carried = len(args) - first - consts
        region = self._lowering.body(eqn.params["body_jaxpr"].jaxpr, consts, carried)
        return self._loop(eqn, args, (first + consts, carried), Nested((region,), None), [])

    def _loop(
        self,
        eqn: Any,
        args: list[Value],
        layout: tuple[int, int],
        nested: Nested,
        stacks: list[Value],
    ) -> list[Value]:
        """A loop; what it carries and stacks lives in buffers that are made before it."""
        start, stop = layout[0], sum(layout)
        carried = [
            self._scope.add(Kind.UPDATE, (arg,), arg, "copy", eqn) for arg in args[start:stop]
        ]
        reads = (*args[:start], *carried, *args[stop:], *stacks)
        loop = self._scope.add(Kind.CALL, reads, None, eqn.primitive.name, eqn)
        loop.nested = nested
        return [
            self._scope.part(loop, var.aval, shares=buffer)
            for var, buffer in zip(eqn.outvars, [*carried, *stacks], strict=True)
        ]

    def _cond(self, eqn: Any, args: list[Value]) -> list[Value]:
        call = self._scope.add(Kind.CALL, tuple(args), None, "cond", eqn)
        branches = eqn.params["branches"]
        call.nested = Nested(tuple(self._lowering.branch(one.jaxpr) for one in branches), 1)
        return [self._scope.part(call, var.aval) for var in eqn.outvars]


def _holds_back(eqn: Any) -> bool:
    """Whether a checkpoint's recomputation waits behind a barrier."""
    prevented = eqn.params.get("prevent_cse", False)
    is_prevented = any(prevented) if isinstance(prevented, tuple) else bool(prevented)
    return bool(eqn.params.get("differentiated")) and is_prevented
