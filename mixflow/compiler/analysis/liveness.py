"""Peak memory of a program's temporaries, and who is alive at the peak."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from mixflow.compiler import jax_compat
from mixflow.compiler.analysis.costs import spell_out
from mixflow.compiler.vjp_primitive import SYMBOLIC

CHEAP = frozenset(
    {
        *("add", "sub", "mul", "neg", "max", "min", "select_n", "and", "or", "not", "xor", "abs"),
        *("eq", "ne", "lt", "le", "gt", "ge", "sign", "floor", "ceil", "clamp", "is_finite"),
        *("integer_pow", "square", "convert_element_type", "broadcast_in_dim", "iota"),
        *("reshape", "squeeze", "expand_dims", "transpose", "rev", "slice", "dynamic_slice", "pad"),
        *("copy", "copy_p", "name", "stop_gradient", "concatenate", "add_any", "sin", "cos"),
        *("real", "imag", "reduce_precision", "bitcast_convert_type", "mul_no_nan", "pvary"),
    }
)
"""Computed again in every kernel that reads them; never in memory unless a kernel needs them."""

EXPENSIVE = frozenset(
    {
        *("exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "erf_inv"),
        *("div", "rem", "sqrt", "rsqrt", "cbrt", "pow", "tan", "atan2", "sinh", "cosh"),
        *("asin", "acos", "atan", "asinh", "acosh", "atanh", "lgamma", "digamma"),
    }
)
"""Fused into one reader; in memory where there are several."""

REDUCTIONS = frozenset(
    {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"}
)


@dataclass(frozen=True)
class Alive:
    """A buffer at the peak.

    Arguments:
        bytes: its size.
        aval: its type, as `f32[4,8]`.
        at: the user's `file:line` of what computes it, or "<unknown>".
        primitive: what computes it.
    """

    bytes: int
    aval: str
    at: str
    primitive: str


@dataclass(frozen=True)
class Peak:
    """Arguments:
    bytes: the most that temporaries take at any time; arguments and results are not counted.
    alive: the buffers at that time, largest first.
    """

    bytes: int
    alive: tuple[Alive, ...]


@dataclass
class _Value:
    size: int
    eqn: Any
    aval: Any
    sources: tuple[_Value, ...] = ()
    stored: bool = False
    owned: bool = True
    last: int = -1


class _Sweep:
    def __init__(self) -> None:
        self.steps: list[tuple[list[_Value], list[_Value], int, tuple[Alive, ...]]] = []
        self.memo: dict[Any, Peak] = {}

    def run(self, jaxpr: Any, inputs: list[_Value]) -> list[_Value]:
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

        def read(atom: Any) -> _Value:
            if isinstance(atom, Literal):
                return _Value(0, None, atom.aval, owned=False)
            return env[atom]

        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, args: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        if eqn.primitive in SYMBOLIC:
            closed = spell_out(eqn)
            consts = [_Value(0, None, var.aval, owned=False) for var in closed.jaxpr.constvars]
            return self.run(closed.jaxpr, [*consts, *args])
        if name == "optimization_barrier":
            for arg in args:
                self.store(arg)
            return args
        inner = list(jaxprs_in_params(eqn.params))
        if name in ("scan", "while", "cond"):
            return self.control(eqn, args, inner)
        if (
            inner
            and len(inner[0].outvars) == len(eqn.outvars)
            and not inner[0].constvars
            and len(inner[0].invars) == len(args)
        ):
            return self.run(inner[0], args)
        values = [_Value(_size(var.aval), eqn, var.aval, tuple(args)) for var in eqn.outvars]
        if name in CHEAP or name in EXPENSIVE or name in REDUCTIONS:
            return values
        for arg in args:
            self.store(arg)
        self.steps.append((args, values, 0, ()))
        for value in values:
            value.stored = True
        return values

    def control(self, eqn: Any, args: list[_Value], inner: list[Any]) -> list[_Value]:
        for arg in args:
            self.store(arg)
        peaks = [self.nested(body) for body in inner]
        worst = max(peaks, key=lambda peak: peak.bytes)
        values = [_Value(_size(v.aval), eqn, v.aval, stored=True) for v in eqn.outvars]
        self.steps.append((args, values, worst.bytes, worst.alive))
        return values

    def nested(self, body: Any) -> Peak:
        key = id(body)
        if key not in self.memo:
            self.memo[key] = _peak(body, self.memo)
        return self.memo[key]

    def store(self, value: _Value) -> None:
        if value.stored or not value.owned:
            return
        value.stored = True
        self.steps.append((list(_leaves(value)), [value], 0, ()))


def _leaves(value: _Value) -> Iterator[_Value]:
    stack, seen = list(value.sources), set[int]()
    while stack:
        source = stack.pop()
        if id(source) in seen:
            continue
        seen.add(id(source))
        if source.stored or not source.owned:
            yield source
        else:
            stack.extend(source.sources)


def peak_memory(closed: ClosedJaxpr) -> Peak:
    """The peak of a program's temporaries, as XLA would allocate them.

    Arguments:
        closed: the whole program; symbolic derivatives in it are spelled out.
    """
    jaxpr = closed.jaxpr
    opened = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    return _peak(dce_jaxpr(opened, [True] * len(jaxpr.outvars))[0], {})


def _peak(jaxpr: Any, memo: dict[Any, Peak]) -> Peak:
    sweep = _Sweep()
    sweep.memo = memo
    inputs = [
        _Value(0, None, v.aval, stored=True, owned=False) for v in [*jaxpr.constvars, *jaxpr.invars]
    ]
    outs = sweep.run(jaxpr, inputs)
    for out in outs:
        sweep.store(out)
    free = {id(out) for out in outs}
    for place, (reads, writes, _, _) in enumerate(sweep.steps):
        for value in (*reads, *writes):
            for leaf in (value,) if value.stored else _leaves(value):
                leaf.last = place
    now, best, at = 0, 0, 0
    dying: dict[int, list[_Value]] = {}
    live: dict[int, _Value] = {}
    snapshot: list[Any] = []
    for place, (_, writes, extra, nested) in enumerate(sweep.steps):
        for value in writes:
            if id(value) in free or not value.size:
                continue
            now += value.size
            live[id(value)] = value
            dying.setdefault(value.last, []).append(value)
        if now + extra > best:
            best, at = now + extra, place
            snapshot = [list(live.values()), nested] if False else [place]
        for value in dying.pop(place, ()):
            now -= value.size
            live.pop(id(value), None)
    alive = _alive_at(sweep, at, free) if snapshot else ()
    return Peak(best, alive)


def _alive_at(sweep: _Sweep, at: int, free: set[int]) -> tuple[Alive, ...]:
    found = list(sweep.steps[at][3])
    for _, writes, _, _ in sweep.steps[: at + 1]:
        found += [
            Alive(v.size, v.aval.str_short(True), _line(v.eqn), v.eqn.primitive.name)
            for v in writes
            if v.last >= at and id(v) not in free and v.size
        ]
    return tuple(sorted(found, key=lambda alive: -alive.bytes))


def _line(eqn: Any) -> str:
    return "<unknown>" if eqn is None else jax_compat.source_line(eqn.source_info)


def _size(aval: Any) -> int:
    shape = getattr(aval, "shape", ())
    if not all(isinstance(dim, int) for dim in shape):
        return 0
    return math.prod(shape) * getattr(getattr(aval, "dtype", None), "itemsize", 0)
