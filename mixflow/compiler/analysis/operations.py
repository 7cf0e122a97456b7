"""How single equations become values: what XLA simplifies, broadcasts and transposes for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from mixflow.compiler.analysis.dataflow import UNKNOWN, Kind, Value

CHEAP = frozenset(
    {
        *("add", "add_any", "sub", "mul", "neg", "max", "min", "abs", "sign", "square", "clamp"),
        *("and", "or", "not", "xor", "eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"),
        *("floor", "ceil", "round", "is_finite", "integer_pow", "convert_element_type", "select_n"),
        *("sin", "cos", "tan", "real", "imag", "complex", "conj", "reduce_precision", "nextafter"),
        *("bitcast_convert_type", "shift_left", "shift_right_logical", "shift_right_arithmetic"),
        *("population_count", "clz", "mul_no_nan", "mulhi", "one_minus_square", "polynomial"),
    }
)
"""Element-wise, and as cheap as reading the result from memory."""

COSTLY = frozenset(
    {
        *("exp", "exp2", "expm1", "log", "log1p", "logistic", "erf", "erfc", "erf_inv", "tanh"),
        *("div", "rem", "pow", "sqrt", "rsqrt", "cbrt", "sinh", "cosh", "asin", "acos", "atan"),
        *("asinh", "acosh", "atanh", "atan2", "lgamma", "digamma", "log2", "bessel_i0e"),
        *("bessel_i1e", "igamma", "igammac", "polygamma", "zeta", "regularized_incomplete_beta"),
    }
)
"""Element-wise, and not to be computed twice."""

MOVES = frozenset(
    {
        *("transpose", "rev", "slice", "dynamic_slice", "pad", "concatenate", "stack", "iota"),
        *("gather", "split", "unstack"),
    }
)

REDUCTIONS = frozenset(
    {
        *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
        *("reduce_xor", "argmax", "argmin"),
    }
)

SAME = frozenset(
    {
        *("reshape", "squeeze", "expand_dims", "stop_gradient", "copy", "copy_p", "name"),
        *("pvary", "pcast", "sharding_constraint", "mesh_cast", "reshard"),
    }
)
"""The same elements in the same order: no operation at all."""


_HALVES = (jnp.bfloat16, jnp.float16)
_HALF_PRODUCTS = jax.__version_info__ >= (0, 11)
"""Whether XLA's CPU library multiplies matrices of 16-bit numbers; else they are converted."""


@dataclass(frozen=True)
class Array:
    """The type of a value that no equation wrote down."""

    shape: tuple[Any, ...]
    dtype: Any


class Scope:
    """The values of one region while it is being built.

    Arguments:
        is_loop: whether it is a loop's body.
    """

    def __init__(self, *, is_loop: bool = False) -> None:
        self.values: list[Value] = []
        self._is_loop = is_loop
        self._known: dict[Any, Value] = {}
        self._invariant: set[Value] = set()
        """What every iteration computes anew from the same operands."""

    def add(
        self, kind: Kind, reads: tuple[Value, ...], aval: Any, name: str, eqn: Any = None
    ) -> Value:
        """A new value."""
        value = Value(kind, reads, aval, name, eqn)
        self.values.append(value)
        if kind not in (Kind.SOURCE, Kind.PART) and self._is_invariant(reads):
            self._invariant.add(value)
        return value

    def _is_invariant(self, reads: Sequence[Value]) -> bool:
        return self._is_loop and all(read in self._invariant for read in reads)

    def once(
        self, kind: Kind, reads: tuple[Value, ...], aval: Any, name: str, eqn: Any = None
    ) -> Value:
        """The value of this name, operands and type, new only if there is none."""
        key = (kind, name, reads, tuple(aval.shape), aval.dtype)
        if key not in self._known:
            self._known[key] = self.add(kind, reads, aval, name, eqn)
        return self._known[key]

    def source(self, aval: Any, *, invariant: bool = True) -> Value:
        """An argument or an array that the program holds, the same for every iteration or not."""
        value = self.add(Kind.SOURCE, (), aval, "source")
        if invariant:
            self._invariant.add(value)
        return value

    def literal(self, atom: Literal) -> Value:
        """A scalar that stands in the program itself."""
        return self.scalar(_scalar(atom.val), getattr(atom.aval, "dtype", None))

    def scalar(self, constant: Any, dtype: Any) -> Value:
        """A constant."""
        key = ("constant", str(constant), dtype)
        if constant is UNKNOWN or key not in self._known:
            self._known[key] = self.source(Array((), dtype))
            self._known[key].constant = constant
        return self._known[key]

    # --- equations -----------------------------------------------------------------------------

    def leaf(self, eqn: Any, args: list[Value]) -> list[Value]:
        """The results of an equation that holds no program."""
        name = eqn.primitive.name
        if name in ("split", "unstack") and len(eqn.outvars) > 1:
            return [self.add(Kind.MOVE, (args[0],), v.aval, "slice", eqn) for v in eqn.outvars]
        if len(eqn.outvars) == 1 and not eqn.effects and name != "random_bits":
            return [self._common(eqn, args)]
        call = self.add(Kind.CALL, tuple(args), None, name, eqn)
        if name == "random_bits":
            return [self._random_bits(eqn, call)]
        return [self.part(call, var.aval) for var in eqn.outvars]

    def _random_bits(self, eqn: Any, call: Value) -> Value:
        """JAX's generator makes two words for each, which their readers put together."""
        out = eqn.outvars[0].aval
        words = (self.part(call, out), self.part(call, out))
        return self.add(Kind.CHEAP, words, out, "xor", eqn)

    def part(self, call: Value, aval: Any, shares: Value | None = None) -> Value:
        """One result of a call, in a buffer of its own or in that of another value."""
        value = self.add(Kind.PART, (call,), aval, call.name, call.eqn)
        value.shares = shares
        return value

    def _common(self, eqn: Any, args: list[Value]) -> Value:
        """An equation's one result: an old value if the same was computed before.

        XLA moves what does not change out of loops before it looks for equal expressions, and
        takes operands of a loop for different even when they are equal.
        """
        if self._is_invariant(args) and eqn.primitive.name not in ("broadcast_in_dim", "iota"):
            return self._single(eqn, args)
        try:
            key = (eqn.primitive, tuple(args), tuple(eqn.params.items()))
            known = self._known.get(key)
        except TypeError:  # a parameter that cannot be hashed
            return self._single(eqn, args)
        if known is None:
            known = self._known[key] = self._single(eqn, args)
        return known

    def _single(self, eqn: Any, args: list[Value]) -> Value:  # noqa: PLR0911
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        is_swapped = name == "transpose" and _is_swapped_product(eqn, args[0])
        if name in SAME or is_swapped or _changes_nothing(eqn, args):
            return args[0]
        if name in CHEAP or name in COSTLY:
            return self._elementwise(eqn, args)
        if name in ("empty", "empty2"):
            return self._spread(self.scalar(UNKNOWN, out.dtype), out, eqn)
        if name in ("broadcast_in_dim", "tile"):
            return self._broadcast(eqn, args)
        if name == "dot_general":
            return self._dot(eqn, args)
        if name == "conv_general_dilated":
            return self._convolution(eqn, args)
        return self.add(_kind(name), tuple(args), out, name, eqn)

    def _broadcast(self, eqn: Any, args: list[Value]) -> Value:
        out = eqn.outvars[0].aval
        if args[0].size == 1:
            return self._spread(args[0], out, eqn)
        return self.add(Kind.BROADCAST, tuple(args), out, "broadcast_in_dim", eqn)

    def _spread(self, value: Value, out: Any, eqn: Any) -> Value:
        """A value broadcast to the shape of `out`, as every operand of an operation has to be."""
        if value.size == _size(out):
            return value
        while value.kind is Kind.BROADCAST and value.reads[0].size == 1:
            value = value.reads[0]
        wide = Array(tuple(out.shape), value.dtype)
        spread = self.once(Kind.BROADCAST, (value,), wide, "broadcast_in_dim", eqn)
        spread.constant = value.constant
        return spread

    def _elementwise(self, eqn: Any, args: list[Value]) -> Value:
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        if all(arg.constant is not None for arg in args):
            kept = args[0].constant if name == "convert_element_type" else UNKNOWN
            return self._spread(self.scalar(kept, out.dtype), out, eqn)
        neutral = _neutral_operand(name, args)
        if neutral is not None:
            return self._spread(args[1 - neutral], out, eqn)
        scatter = _scattered_operand(name, args)
        if scatter is not None:
            reads = (args[1 - scatter], *args[scatter].reads[1:])
            return self.add(Kind.UPDATE, reads, out, "scatter-add", eqn)
        if name == "div" and _is_broadcast(args[1], out):
            return self._scaled(eqn, args)
        costly = name in COSTLY or (name == "integer_pow" and eqn.params["y"] < 0)
        kind = Kind.COSTLY if costly else Kind.CHEAP
        return self.add(kind, tuple(self._spread(arg, out, eqn) for arg in args), out, name, eqn)

    def _scaled(self, eqn: Any, args: list[Value]) -> Value:
        """A division by fewer elements than the result has: they are inverted first."""
        out, divisor = eqn.outvars[0].aval, args[1]
        while divisor.kind is Kind.BROADCAST:
            divisor = divisor.reads[0]
        if divisor.constant is None:
            small = Array(divisor.shape, divisor.dtype)
            divisor = self.once(Kind.COSTLY, (divisor,), small, "div", eqn)
        spread = self._spread(divisor, out, eqn)
        if args[0].constant == 1:
            return spread
        return self.add(Kind.CHEAP, (self._spread(args[0], out, eqn), spread), out, "mul", eqn)

    def _dot(self, eqn: Any, args: list[Value]) -> Value:
        (contract, batch), out = eqn.params["dimension_numbers"], eqn.outvars[0].aval
        left, right = (
            self._product_operand(eqn, args[side], batch[side], contract[side], side)
            for side in (0, 1)
        )
        name = "convert_element_type"
        if left.dtype not in _HALVES or (_HALF_PRODUCTS and not reads_columns(eqn, left)):
            return self.add(Kind.DOT, (left, right), out, "dot_general", eqn)
        wide = tuple(self.once(Kind.CHEAP, (x,), _single(x), name, eqn) for x in (left, right))
        product = self.add(Kind.DOT, wide, _single(out), "dot_general", eqn)
        return self.add(Kind.CHEAP, (product,), out, name, eqn)

    def _product_operand(self, eqn: Any, arg: Value, batch: Any, contract: Any, side: int) -> Value:
        """An operand of a matrix product, copied if no library takes its dimensions as they are.

        They do take (batch, rows, columns), transposed or not, if rows and columns are one
        dimension each. All else becomes (batch, free, contracted) or (batch, contracted, free).
        """
        aval = eqn.invars[side].aval
        long = [dim for dim, size in enumerate(aval.shape) if size != 1]
        groups = [
            [dim for dim in batch if dim in long],
            [dim for dim in long if dim not in batch and dim not in contract],
            [dim for dim in contract if dim in long],
        ]
        if side == 1:
            groups = [groups[0], groups[2], groups[1]]
        wanted = [dim for group in groups for dim in group]
        single = len(groups[1]) <= 1 and len(groups[2]) <= 1
        leading = long[: len(groups[0])] == groups[0]
        if wanted == long or (single and leading):
            return arg
        copied = Array(tuple(aval.shape[dim] for dim in wanted), arg.dtype)
        return self.once(Kind.MOVE, (arg,), copied, "transpose", eqn)

    def _convolution(self, eqn: Any, args: list[Value]) -> Value:
        """A convolution; operands and result that are not channels-last are transposed."""
        dims = eqn.params["dimension_numbers"]
        last = len(dims.lhs_spec) - 1
        image = (0, last, *range(1, last))
        kernel = (last, last - 1, *range(last - 1))
        grouped = eqn.params["batch_group_count"] > 1
        reads = tuple(
            arg
            if tuple(spec) == wanted and not grouped
            else self.add(Kind.MOVE, (arg,), arg, "transpose", eqn)
            for arg, spec, wanted in zip(
                args, (dims.lhs_spec, dims.rhs_spec), (image, kernel), strict=True
            )
        )
        out = eqn.outvars[0].aval
        result = self.add(Kind.CALL, reads, out, "conv_general_dilated", eqn)
        if tuple(dims.out_spec) == image:
            return result
        return self.add(Kind.MOVE, (result,), out, "transpose", eqn)


def _kind(name: str) -> Kind:
    if name in MOVES:
        return Kind.MOVE
    if name in REDUCTIONS:
        return Kind.REDUCE
    if name == "dynamic_update_slice" or name.startswith("scatter"):
        return Kind.UPDATE
    return Kind.CALL


def _changes_nothing(eqn: Any, args: list[Value]) -> bool:
    """A conversion to the same type, a broadcast or transposition of dimensions of length one."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "convert_element_type":
        return out.dtype == args[0].dtype
    if name in ("broadcast_in_dim", "tile", "split", "unstack", "concatenate", "slice"):
        return _size(out) == args[0].size
    if name != "transpose":
        return False
    shape = eqn.invars[0].aval.shape
    long = [dim for dim in eqn.params["permutation"] if shape[dim] != 1]
    return long == sorted(long)


def reads_columns(eqn: Any, left: Value) -> bool:
    """Whether a matrix product reads its left operand by columns."""
    ((contracted, _), (batch, _)) = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    free = [
        dim
        for dim, size in enumerate(shape)
        if dim not in contracted and dim not in batch and size != 1
    ]
    is_copied = left.name == "transpose"  # then it is copied as the product needs it
    return not is_copied and bool(free) and min(contracted, default=0) < max(free)


def _single(aval: Any) -> Array:
    return Array(tuple(aval.shape), np.dtype(np.float32))


def _is_swapped_product(eqn: Any, arg: Value) -> bool:
    """Whether a transposition of a product is the product of its operands the other way round."""
    if arg.kind is not Kind.DOT:
        return False
    (contract, batch) = arg.eqn.params["dimension_numbers"]
    ranks = [len(var.aval.shape) - len(batch[0]) - len(contract[0]) for var in arg.eqn.invars[:2]]
    first, second = len(batch[0]), len(batch[0]) + ranks[0]
    stop = second + ranks[1]
    return tuple(eqn.params["permutation"]) == (
        *range(first),
        *range(second, stop),
        *range(first, second),
    )


def _neutral_operand(name: str, args: list[Value]) -> int | None:
    """The place of an operand that makes no difference, if there is one."""
    if name in ("add", "add_any", "mul"):
        neutral = 1 if name == "mul" else 0
        return next((side for side in (0, 1) if args[side].constant == neutral), None)
    if (name == "sub" and args[1].constant == 0) or (name == "div" and args[1].constant == 1):
        return 1
    return None


def _scattered_operand(name: str, args: list[Value]) -> int | None:
    """The place of an operand of a sum that is zero but for some places, if there is one."""
    if name not in ("add", "add_any") or args[0].size != args[1].size:
        return None
    return next(
        (
            side
            for side in (0, 1)
            if args[side].name == "scatter-add" and args[side].reads[0].constant == 0
        ),
        None,
    )


def _is_broadcast(value: Value, out: Any) -> bool:
    """Whether a divisor has fewer elements than the quotient, which is not an integer."""
    while value.kind is Kind.BROADCAST:
        value = value.reads[0]
    return value.size < _size(out) and np.dtype(out.dtype).kind not in "iu"


def _scalar(value: Any) -> Any:
    array = np.asarray(value)
    return array.item() if array.size == 1 and array.dtype.kind in "biuf" else UNKNOWN


def _size(aval: Any) -> int:
    return math.prod(dim for dim in aval.shape if isinstance(dim, int))
