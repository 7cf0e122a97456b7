"""Running a program one operation at a time.

XLA takes seconds to compile a small program, and milliseconds to compile one of its operations,
which the next program has as well. So calls, loops and branches are opened here, and what is in
them is run as JAX runs code outside of any `jit`, or by NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params
from jax.tree_util import tree_leaves, tree_unflatten

from benchmarks.fuzz.with_numpy import by_numpy
from mixflow.compiler.derivative.vjp_primitive import SYMBOLIC, traced_definition
from mixflow.compiler.jax_compat import scan_layout

Values = Sequence[Any]


def run_stepped(function: Any, args: tuple[Any, ...]) -> Any:
    """The result of a function that has `.trace`, as what `jax.jit` returns has."""
    traced = function.trace(*args)
    results = run_jaxpr(traced.jaxpr, tree_leaves(args))
    return tree_unflatten(jax.tree.structure(traced.out_info), results)


def run_jaxpr(closed: ClosedJaxpr, args: Values) -> Values:
    """The results of a jaxpr, operation by operation."""
    known: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(closed.jaxpr.invars, args, strict=True))

    def value(atom: Any) -> Any:
        if not isinstance(atom, Literal):
            return known[atom]
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)

    for equation in closed.jaxpr.eqns:
        operands = [value(atom) for atom in equation.invars]
        if equation.primitive.name in _OPENED:
            results = _OPENED[equation.primitive.name](equation, operands)
        elif equation.primitive in SYMBOLIC:
            avals = list(map(jax.typeof, operands))
            plain = traced_definition(equation.primitive, avals, equation.params)
            results = run_jaxpr(plain, operands)
        else:
            results = by_numpy(equation, operands)
            if results is None:
                results = _whole(equation, operands, closed.jaxpr)
        known.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in closed.jaxpr.outvars]


def _whole(equation: Any, operands: Values, within: Jaxpr) -> Values:
    """By XLA, as one piece."""
    primitive, params = equation.primitive, equation.params
    if not any(True for _ in jaxprs_in_params(params)):
        found = primitive.bind(*operands, **params)
        return found if primitive.multiple_results else [found]
    # Where there are jaxprs in the parameters, `bind` may take others: JAX knows.
    pairs = zip(equation.invars, operands, strict=True)
    given = {atom: operand for atom, operand in pairs if not isinstance(atom, Literal)}
    alone = within.replace(constvars=[], invars=[*given], outvars=equation.outvars, eqns=[equation])
    return jax.core.eval_jaxpr(alone, (), *given.values())


def _call(equation: Any, operands: Values) -> Values:
    called = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    closed = called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ())
    return run_jaxpr(closed, operands)


def _cond(equation: Any, operands: Values) -> Values:
    return run_jaxpr(equation.params["branches"][int(operands[0])], operands[1:])


def _while(equation: Any, operands: Values) -> Values:
    params = equation.params
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    asked, done, carry = operands[:first], operands[first:second], operands[second:]
    while np.any(goes_on := run_jaxpr(params["cond_jaxpr"], [*asked, *carry])[0]):
        after = run_jaxpr(params["body_jaxpr"], [*done, *carry])
        carry = [_where(goes_on, new, old) for new, old in zip(after, carry, strict=True)]
    return carry


def _where(goes_on: Any, new: Any, old: Any) -> Any:
    """Of a batch of loops, which `vmap` made one, each keeps its values once it has ended."""
    if np.ndim(goes_on) == 0:
        return new
    return jnp.where(
        jnp.reshape(goes_on, np.shape(goes_on) + (1,) * (np.ndim(new) - np.ndim(goes_on))), new, old
    )


def _scan(equation: Any, operands: Values) -> Values:
    params = equation.params
    num_consts, num_carry = scan_layout(params)
    consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
    order = range(params["length"])
    stacks = [_indexable(operand) for operand in operands[num_consts + num_carry :]]
    kept: list[Values] = []
    for i in reversed(order) if params["reverse"] else order:
        slices = [stack[i] for stack in stacks]
        results = run_jaxpr(params["jaxpr"], [*consts, *carry, *slices])
        carry = results[:num_carry]
        kept.append(results[num_carry:])
    rows = kept[::-1] if params["reverse"] else kept
    return [*carry, *map(_stacked, zip(*rows, strict=True))]


def _indexable(stack: Any) -> Any:
    """NumPy's arrays are quicker to take apart; keys cannot be NumPy's."""
    return stack if jnp.issubdtype(stack.dtype, jax.dtypes.extended) else np.asarray(stack)


def _stacked(rows: Values) -> Any:
    return (jnp if jnp.issubdtype(rows[0].dtype, jax.dtypes.extended) else np).stack(rows)


_OPENED: dict[str, Callable[[Any, Values], Values]] = {
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    **dict.fromkeys(("jit", "closed_call", "checkpoint", "remat2"), _call),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), _call),
}
