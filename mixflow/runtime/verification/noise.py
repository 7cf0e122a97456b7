"""How far a program's own roundings reach: what one unit in the last place does to its results.

Two right programs for one function differ by their roundings, and a program may amplify these a
thousand times, or ten million. So it is run again with every rounding moved: what an operation
that rounds gives goes a unit in the last place up or down, at random, in the precision that it is
computed in. Arguments and constants do so as well:

    h = tanh(x)                  h = nudge(tanh(nudge(x)))
    y = sum(h * h)        →      y = nudge(sum(nudge(h * h)))

To move the arguments alone would not do: float16 between float32 arguments and a float32 result
errs by far more than a unit of float32, and zeros and integers cannot be moved.

Source: Monte Carlo arithmetic, D. S. Parker, UCLA CSD-970002 (1997).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, Var
from jax.tree_util import tree_leaves

from mixflow.compiler import jax_compat
from mixflow.compiler.primitives import row_of
from mixflow.runtime.arguments import Arguments
from mixflow.runtime.staged import Staged

_INLINED = {
    **dict.fromkeys(("jit", "remat2"), "jaxpr"),
    **dict.fromkeys(("closed_call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
}
"""Primitives that run one program, and the parameter that holds it."""

_BITS = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}
_Values = Sequence[Any]


class MovedRoundings:
    """A function that can be run with its roundings moved.

    Arguments:
        fun: the function, plain.
        static: the jit options that say what of its arguments is static.
    """

    def __init__(self, fun: Callable[..., Any], static: dict[str, Any]) -> None:
        arguments = Arguments(fun, static)

        @functools.wraps(fun, updated=())
        def moved(*args: Any, mixflow_seed: Any, mixflow_ulps: Any, **kwargs: Any) -> list[Any]:
            call = Staged.of(fun, arguments, args, kwargs)
            closed = jax.make_jaxpr(call.flat)(*call.arrays)
            nudge = functools.partial(nudged, seed=mixflow_seed, ulps=mixflow_ulps)
            return _Moved(nudge).closed(closed, list(map(nudge, call.arrays)))

        self._jit: Any = jax.jit(moved, **static)

    def __call__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int, ulps: int
    ) -> list[Any]:
        """The leaves of the function's result, with roundings moved.

        Arguments:
            args, kwargs: of the function.
            seed: which go up and which go down.
            ulps: by how many units in the last place.
        """
        nudge = {"mixflow_seed": jnp.uint32(seed), "mixflow_ulps": jnp.uint32(ulps)}
        return tree_leaves(self._jit(*args, **kwargs, **nudge))


def nudged(x: Any, seed: Any, ulps: Any) -> Any:
    """A value some units in the last place up or down; what was not rounded stays as it is.

    That is zeros, NaNs, integers and small whole numbers: a mask, a count or a label that is kept
    as a float would be another one at once. Which way an element goes depends on its own bits and
    on the seed: equal values go the same way, so that what is computed twice, as in a checkpoint,
    stays the same.

    Arguments:
        x: of any type.
        seed, ulps: unsigned 32-bit integers.
    """
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return x
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return lax.complex(nudged(x.real, seed, ulps), nudged(x.imag, seed, ulps))
    width = jnp.finfo(dtype).bits
    if width not in _BITS:
        return x
    bits = lax.bitcast_convert_type(x, _BITS[width])
    step = ulps.astype(_BITS[width])
    moved = jnp.where(_goes_up(bits, seed), bits + step, bits - step)
    normal = jnp.isfinite(x) & (jnp.abs(x) >= 2 * jnp.finfo(dtype).tiny)
    return jnp.where(normal & ~_is_small_and_whole(x), lax.bitcast_convert_type(moved, dtype), x)


def _is_small_and_whole(x: Any) -> Any:
    """Few numbers of about this size are whole (one in 2048, for float32), or it was meant so."""
    small = 2 ** (jnp.finfo(x.dtype).nmant // 2)
    return (jnp.abs(x) <= small) & (x == jnp.round(x))


def _goes_up(bits: Any, seed: Any) -> Any:
    """A coin for each element: the top bit of a hash (the last steps of MurmurHash3)."""
    if bits.dtype == jnp.uint64:
        bits ^= bits >> 32
    mixed = bits.astype(jnp.uint32) ^ seed
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return (mixed >> 16) & 1 == 1


class _Moved:
    """Evaluates jaxprs, and nudges what their equations give."""

    def __init__(self, nudge: Callable[[Any], Any]) -> None:
        self._nudge = nudge

    def closed(self, closed: ClosedJaxpr, args: _Values) -> list[Any]:
        """The results of a closed jaxpr."""
        return self._run(closed.jaxpr, list(map(self._nudge, closed.consts)), args)

    def _run(self, jaxpr: Any, consts: _Values, args: _Values) -> list[Any]:
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))

        def read(atoms: Sequence[Any]) -> list[Any]:
            return [atom.val if isinstance(atom, Literal) else values[atom] for atom in atoms]

        for eqn in jaxpr.eqns:
            values.update(zip(eqn.outvars, self._results(eqn, read(eqn.invars)), strict=True))
        return read(jaxpr.outvars)

    def _results(self, eqn: Any, operands: list[Any]) -> list[Any]:
        params = eqn.params
        match eqn.primitive.name:
            case "scan":
                return self._scan(params, operands)
            case "while":
                return self._while(params, operands)
            case "cond":
                index, *others = operands
                branches = [functools.partial(self._flat, one) for one in params["branches"]]
                return lax.switch(index, branches, *others)
            case name if name in _INLINED:
                if params.get("differentiated"):
                    operands = lax.optimization_barrier(operands)  # what it reruns stays rerun
                return self._flat(params[_INLINED[name]], *operands)
            case _:
                results = _one_equation(eqn, operands)
                return list(map(self._nudge, results)) if _rounds(eqn) else results

    def _flat(self, jaxpr: Any, *operands: Any) -> list[Any]:
        """The results of a jaxpr, closed or open."""
        if isinstance(jaxpr, ClosedJaxpr):
            return self.closed(jaxpr, operands)
        return self._run(jaxpr, [], operands)

    def _scan(self, params: dict[str, Any], operands: list[Any]) -> list[Any]:
        num_consts, num_carry = jax_compat.scan_layout(params)
        consts, carry = operands[:num_consts], operands[num_consts:][:num_carry]

        def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
            results = self._flat(params["jaxpr"], *consts, *carry, *xs)
            return results[:num_carry], results[num_carry:]

        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        last, stacked = lax.scan(step, carry, operands[num_consts + num_carry :], **options)
        return [*last, *stacked]

    def _while(self, params: dict[str, Any], operands: list[Any]) -> list[Any]:
        cond_end = params["cond_nconsts"]
        body_end = cond_end + params["body_nconsts"]
        cond_consts, body_consts = operands[:cond_end], operands[cond_end:body_end]
        return lax.while_loop(
            lambda state: self._flat(params["cond_jaxpr"], *cond_consts, *state)[0],
            lambda state: self._flat(params["body_jaxpr"], *body_consts, *state),
            operands[body_end:],
        )


def _one_equation(eqn: Any, operands: list[Any]) -> list[Any]:
    """An equation's results, by JAX's own evaluation of a program of this one equation."""
    invars = [Var(atom.aval) for atom in eqn.invars]
    names = DebugInfo("mixflow", "one equation", ("",) * len(invars), ("",) * len(eqn.outvars))
    eqns = [eqn.replace(invars=invars)]
    alone = Jaxpr([], invars, eqn.outvars, eqns, eqn.effects, debug_info=names)
    return jax.core.eval_jaxpr(alone, [], *operands)


def _rounds(eqn: Any) -> bool:
    """Whether an equation rounds; a change of type does so where it is to a narrower one."""
    if eqn.primitive.name != "convert_element_type":
        return not row_of(eqn).exact
    given, wanted = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    return jnp.issubdtype(given, jnp.inexact) and jnp.promote_types(given, wanted) != wanted
