"""How single equations become values: what XLA simplifies, and what it broadcasts for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from mixflow.compiler.jaxprs.sizes import count_elements
from mixflow.compiler.memory.dataflow import UNKNOWN, Kind, Value
from mixflow.compiler.memory.products import convolution, is_swapped_product, product
from mixflow.compiler.memory.scope import Array, Scope
from mixflow.compiler.memory.windows import select_and_scatter
from mixflow.compiler.primitives import Work, row_of


def leaf(scope: Scope, eqn: Any, args: list[Value]) -> list[Value]:
    """The results of an equation that holds no program.

    Arguments:
        scope: where they become known.
        args: the operands.
    """
    name = eqn.primitive.name
    if name == "random_bits":
        return [_random_bits(scope, eqn, args)]
    if name in ("split", "unstack") and len(eqn.outvars) > 1:
        return [scope.add(Kind.MOVE, (args[0],), v.aval, "slice", eqn) for v in eqn.outvars]
    if len(eqn.outvars) == 1 and not eqn.effects:
        return [_common(scope, eqn, args)]
    call = scope.add(Kind.CALL, tuple(args), None, name, eqn)
    return [scope.part(call, var.aval) for var in eqn.outvars]


def _random_bits(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    """JAX's generator makes two words for each result, which the readers put together."""
    out = eqn.outvars[0].aval
    call = scope.add(Kind.CALL, tuple(args), None, "random_bits", eqn)
    return scope.add(Kind.CHEAP, (scope.part(call, out), scope.part(call, out)), out, "xor", eqn)


def _common(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    """An equation's one result: an old value if the same was computed before.

    XLA moves what does not change out of loops before it looks for equal expressions, and takes
    operands of a loop for different even when they are equal.
    """
    moves_out = eqn.primitive.name not in ("broadcast_in_dim", "iota")
    if moves_out and scope.is_invariant(args):
        return _single(scope, eqn, args)
    key = (eqn.primitive, tuple(args), tuple(eqn.params.items()))
    try:
        known = scope.known(key)
    except TypeError:  # a parameter that cannot be hashed
        return _single(scope, eqn, args)
    return scope.remember(key, _single(scope, eqn, args)) if known is None else known


def _single(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    name, row = eqn.primitive.name, row_of(eqn)
    if row.work is Work.SAME or _changes_nothing(eqn, args):
        return args[0]
    if row.is_elementwise:
        return _elementwise(scope, eqn, args)
    if name in _RULES:
        return _RULES[name](scope, eqn, args)
    return scope.add(_KINDS.get(row.work, Kind.CALL), tuple(args), eqn.outvars[0].aval, name, eqn)


def _broadcast(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    out = eqn.outvars[0].aval
    if args[0].size == 1:
        return scope.spread(args[0], out, eqn)
    return scope.add(Kind.BROADCAST, tuple(args), out, "broadcast_in_dim", eqn)


def _empty(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    del args
    out = eqn.outvars[0].aval
    return scope.spread(scope.scalar(UNKNOWN, out.dtype), out, eqn)


def _transpose(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    if is_swapped_product(eqn, args[0]):
        return args[0]
    return scope.add(Kind.MOVE, tuple(args), eqn.outvars[0].aval, "transpose", eqn)


_RULES: dict[str, Callable[[Scope, Any, list[Value]], Value]] = {
    "broadcast_in_dim": _broadcast,
    "tile": _broadcast,
    "empty": _empty,
    "empty2": _empty,
    "transpose": _transpose,
    "dot_general": product,
    "conv_general_dilated": convolution,
    "select_and_scatter_add": select_and_scatter,
}

_KINDS = {Work.MOVE: Kind.MOVE, Work.REDUCE: Kind.REDUCE, Work.UPDATE: Kind.UPDATE}


def _changes_nothing(eqn: Any, args: list[Value]) -> bool:
    """A conversion to the same type, a move of all elements at once or of dimensions of one."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "convert_element_type":
        return out.dtype == args[0].dtype
    if row_of(eqn).whole:
        return count_elements(out) == args[0].size
    if name != "transpose":
        return False
    shape = eqn.invars[0].aval.shape
    long = [dim for dim in eqn.params["permutation"] if shape[dim] != 1]
    return long == sorted(long)


# --- element-wise operations -------------------------------------------------------------------


def _elementwise(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if all(arg.constant is not None for arg in args):
        kept = args[0].constant if name == "convert_element_type" else UNKNOWN
        return scope.spread(scope.scalar(kept, out.dtype), out, eqn)
    neutral = _neutral_operand(name, args)
    if neutral is not None:
        return scope.spread(args[1 - neutral], out, eqn)
    scattered = _scattered_operand(name, args)
    if scattered is not None:
        reads = (args[1 - scattered], *args[scattered].reads[1:])
        return scope.add(Kind.UPDATE, reads, out, "scatter-add", eqn)
    if name == "div" and _is_broadcast(args[1], out):
        return _scaled(scope, eqn, args)
    is_costly = row_of(eqn).work is Work.COSTLY or (name == "integer_pow" and eqn.params["y"] < 0)
    reads = tuple(scope.spread(arg, out, eqn) for arg in args)
    return scope.add(Kind.COSTLY if is_costly else Kind.CHEAP, reads, out, name, eqn)


def _scaled(scope: Scope, eqn: Any, args: list[Value]) -> Value:
    """A division by fewer elements than the result has: they are inverted first."""
    out, divisor = eqn.outvars[0].aval, _before_broadcast(args[1])
    if divisor.constant is None:
        small = Array(divisor.shape, divisor.dtype)
        divisor = scope.once(Kind.COSTLY, (divisor,), small, "div", eqn)
    factor = scope.spread(divisor, out, eqn)
    if args[0].constant == 1:
        return factor
    return scope.add(Kind.CHEAP, (scope.spread(args[0], out, eqn), factor), out, "mul", eqn)


def _is_broadcast(divisor: Value, out: Any) -> bool:
    """Whether a divisor has fewer elements than the quotient, which is not an integer."""
    is_smaller = _before_broadcast(divisor).size < count_elements(out)
    return is_smaller and not jnp.issubdtype(out.dtype, jnp.integer)


def _before_broadcast(value: Value) -> Value:
    while value.kind is Kind.BROADCAST:
        value = value.reads[0]
    return value


def _neutral_operand(name: str, args: list[Value]) -> int | None:
    """The place of an operand that makes no difference, if there is one."""
    if name in ("add", "add_any", "mul"):
        neutral = 1 if name == "mul" else 0
        return next((side for side in (0, 1) if args[side].constant == neutral), None)
    if (name == "sub" and args[1].constant == 0) or (name == "div" and args[1].constant == 1):
        return 1
    return None


def _scattered_operand(name: str, args: list[Value]) -> int | None:
    """The place of an operand of a sum that is zero but for some elements, if there is one.

    Those are added to the other operand in place.
    """
    if name not in ("add", "add_any") or args[0].size != args[1].size:
        return None
    sides = (
        side
        for side in (0, 1)
        if args[side].name == "scatter-add" and args[side].reads[0].constant == 0
    )
    return next(sides, None)
