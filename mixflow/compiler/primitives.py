"""The one table of JAX's primitives: what analyses, memory model and rules know of each by name.

A primitive without a row, a third party's included, gets the row `UNKNOWN`, which is on the safe
side: its derivative is taken for suspect, it is taken for linear in nothing, and it runs as a call
of its own. To add one, write its line below. `tests/compiler/rules/test_primitives.py` lists what
has none, and tries the derivatives that are said to be true.
"""

from __future__ import annotations

import enum
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from jax.extend.core import Literal

from mixflow.compiler.jax_compat import primitive_name

Operands = slice | tuple[int, ...]
"""Some of an equation's operands."""

ALL = slice(None)


class Work(enum.Enum):
    """What XLA makes of a primitive."""

    SAME = "same"
    """Nothing: the same elements in the same order."""
    CHEAP = "cheap"
    """Element by element, as cheap as reading the result from memory."""
    COSTLY = "costly"
    """Element by element, and not to be computed twice."""
    SPREAD = "spread"
    """The elements of a smaller array, each several times."""
    MOVE = "move"
    """Elements in other places."""
    REDUCE = "reduce"
    """A sum, a maximum or the like over some dimensions."""
    UPDATE = "update"
    """An operand with some elements replaced, in place where nobody else reads it."""
    CALL = "call"
    """A computation of its own, never fused with others."""


@dataclass(frozen=True)
class Row:
    """What is known of one primitive. The words in brackets are those of the table.

    Arguments:
        true: whether its derivative rules give the derivative of what it computes, so that second
            derivatives by them are symmetric ("true", "finite", "none").
        finite: whether its derivatives are finite wherever its value is ("finite", "none").
        flat: whether its derivative is zero, or there is none ("none"): it reads nothing.
        once: operands in which JAX has no second derivative of it, or none at all ("once=…").
        linear: sets of operands. In those of one set together it is linear, the others fixed:
            `sub` is linear in both operands together ("all"), `mul` in each of them alone
            ("0|1"), `scatter` in its first and third ("0,2"), `select_n` from its second on
            ("1:").
        work: what XLA makes of it.
        slow: whether an element takes some two hundred instructions, where a product takes one.
        free: whether it counts as no floating-point operation.
        exact: whether it rounds nothing: it moves, chooses or negates what it is given.
        reads_result: whether its derivative reads its result and no operand ("result").
        keeps_sign: whether its result has the sign that all its operands have; indices do not
            count ("sign").
        singular_at: the operand at whose zero its derivative is infinite, and nowhere else
            ("zero=…").
        library: whether XLA for CPU may compute it in a call of its library of kernels.
        layout: whether its result is no more than another layout, which XLA may share between two
            runs.
        everywhere: whether it is worth running again wherever its result is read.
        whole: whether it is nothing where its result is as large as its operand.
    """

    true: bool = False
    finite: bool = False
    flat: bool = False
    once: tuple[int, ...] = ()
    linear: tuple[Operands, ...] = ()
    work: Work = Work.CALL
    slow: bool = False
    free: bool = False
    exact: bool = False
    reads_result: bool = False
    keeps_sign: bool = False
    singular_at: int | None = None
    library: bool = False
    layout: bool = False
    everywhere: bool = False
    whole: bool = False

    def is_linear_in(self, positions: AbstractSet[int], count: int) -> bool:
        """Whether it is linear in some of its `count` operands together, the others fixed."""
        sets = (range(count)[one] if isinstance(one, slice) else one for one in self.linear)
        return any(positions <= set(one) for one in sets)

    @property
    def is_elementwise(self) -> bool:
        """Whether each element of the result is computed from those in its place."""
        return self.work in (Work.CHEAP, Work.COSTLY)


UNKNOWN = Row()

_ROWS = """
# name                      derivative linear work  also
# Linear in all operands together.
add                         finite    all  cheap   library everywhere
add_any                     finite    all  cheap   library
sub                         finite    all  cheap   library everywhere
neg                         finite    all  cheap   library exact
copy                        finite    all  same    sign
reshape                     finite    all  same    sign layout everywhere
squeeze                     finite    all  same    sign layout everywhere
transpose                   finite    all  move    sign library layout everywhere
rev                         finite    all  move    sign
broadcast_in_dim            finite    all  spread  sign library layout everywhere whole
slice                       finite    all  move    sign whole
split                       finite    all  move    whole
stack                       finite    all  move
unstack                     finite    all  move    whole
tile                        finite    all  spread  whole
concatenate                 finite    all  move    sign whole
pad                         finite    all  move    library
reduce_sum                  finite    all  reduce  sign library
cumsum                      finite    all  call    sign
reduce_window_sum           finite    all  call
real                        finite    all  cheap exact
imag                        finite    all  cheap exact
conj                        finite    all  cheap exact
complex                     finite    all  cheap exact
fft                         finite    all  call
select_and_scatter_add      finite    all  call
name                        finite    all  same
sharding_constraint         finite    all  same
reshard                     finite    all  same
layout_constraint           finite    all  call
device_put                  finite    all  call exact
psum                        finite    all  call
psum_invariant              finite    all  call
pvary                       finite    all  same
pbroadcast                  finite    all  call
preduced                    finite    all  call
ppermute                    finite    all  call exact
all_gather                  finite    all  call exact
all_gather_invariant        finite    all  call
all_gather_reduced          finite    all  call
all_to_all                  finite    all  call
reduce_scatter              finite    all  call
unreduced_psum              finite    all  call
unreduced_reduce_scatter    finite    all  call
optimization_barrier        finite    all  call exact
convert_element_type        finite    all  cheap   free sign library layout everywhere
reduce_precision            finite    all  cheap   sign
# Linear in some operands.
select_n                    finite    1:   cheap   free everywhere
dynamic_slice               finite    0    move    sign
gather                      finite    0    move    sign
Ldexp                       finite    0    call
dynamic_update_slice        finite    0,1  update exact
scatter                     finite    0,2  update exact
scatter-add                 finite    0,2  update
scatter-sub                 finite    0,2  update
mul                         finite    0|1  cheap   library everywhere
dot_general                 finite    0|1  call
conv_general_dilated        finite    0|1  call
ragged_dot_general          finite    0|1  call
div                         true      0    costly  zero=1 library
triangular_solve            true      1    call
select_and_gather_add       true      0    call
# Smooth: the derivative is finite wherever the value is.
exp                         finite    -    costly  slow result library
exp2                        finite    -    costly  slow result
expm1                       finite    -    costly  slow library
sin                         finite    -    cheap   slow
cos                         finite    -    cheap   slow
sinh                        finite    -    costly  slow
cosh                        finite    -    costly  slow
tanh                        finite    -    costly  slow result library
logistic                    finite    -    costly  slow result library
erf                         finite    -    costly  slow library
erfc                        finite    -    costly  slow
atan                        finite    -    costly  slow
asinh                       finite    -    costly  slow
square                      finite    -    cheap   library
one_minus_square            finite    -    cheap
abs                         finite    -    cheap   library exact
max                         finite    -    cheap   library exact
min                         finite    -    cheap   library exact
clamp                       finite    -    cheap exact
sort                        finite    -    call exact
top_k                       finite    -    call exact
cummax                      finite    -    call exact
cummin                      finite    -    call exact
cumlogsumexp                finite    -    call
reduce_max                  finite    -    reduce  sign library exact
reduce_min                  finite    -    reduce  sign library exact
reduce_window_max           finite    -    call exact
reduce_window_min           finite    -    call
bessel_i0e                  finite    -    costly
bessel_i1e                  finite    -    costly
polynomial                  finite    -    cheap
Frexp                       finite    -    call
# The derivative is true, and can be infinite.
log                         true      -    costly  slow zero=0 library
log2                        true      -    costly  zero=0
log1p                       true      -    costly  slow library
sqrt                        true      -    costly  result sign zero=0 library
rsqrt                       true      -    costly  slow result zero=0 library
cbrt                        true      -    costly  slow result zero=0
pow                         true      -    costly  slow zero=0 library
integer_pow                 true      -    cheap   library
tan                         true      -    cheap   slow result
asin                        true      -    costly  slow
acos                        true      -    costly  slow
acosh                       true      -    costly  slow
atanh                       true      -    costly  slow
atan2                       true      -    costly  slow
rem                         true      -    costly
erf_inv                     true      -    costly  slow
lgamma                      true      -    costly  slow
digamma                     true      -    costly  slow
cumprod                     true      -    call
reduce_prod                 true      -    reduce
lu                          true      -    call
scatter-mul                 true      -    update
scatter-min                 true      -    update
scatter-max                 true      -    update
tridiagonal_solve           true      -    call
# JAX has one derivative, or none, in some operands.
igamma                      once=0    -    costly
igammac                     once=0    -    costly
random_gamma                once=0    -    call
polygamma                   once=0    -    costly
regularized_incomplete_beta once=0,1  -    costly
zeta                        once=0,1  -    costly
# No derivative, or one that is zero.
sign                        none      -    cheap   library exact
stop_gradient               none      -    same    sign
floor                       none      -    cheap   library exact
ceil                        none      -    cheap   library exact
round                       none      -    cheap   library exact
is_finite                   none      -    cheap
argmax                      none      -    reduce
argmin                      none      -    reduce
iota                        none      -    move    library everywhere
empty                       none      -    call
empty2                      none      -    call
eq                          none      -    cheap   everywhere
ne                          none      -    cheap   everywhere
lt                          none      -    cheap   everywhere
le                          none      -    cheap   everywhere
gt                          none      -    cheap   everywhere
ge                          none      -    cheap   everywhere
eq_to                       none      -    cheap
lt_to                       none      -    cheap
le_to                       none      -    cheap
and                         none      -    cheap   everywhere
or                          none      -    cheap   everywhere
xor                         none      -    cheap
not                         none      -    cheap   everywhere
nextafter                   none      -    cheap
shift_left                  none      -    cheap
shift_right_logical         none      -    cheap
shift_right_arithmetic      none      -    cheap
population_count            none      -    cheap
clz                         none      -    cheap
mulhi                       none      -    cheap
reduce_and                  none      -    reduce
reduce_or                   none      -    reduce
reduce_xor                  none      -    reduce
axis_index                  none      -    call
bitcast_convert_type        none      -    cheap   free
random_seed                 none      -    call
random_bits                 none      -    call
random_fold_in              none      -    call
random_split                none      -    call
random_wrap                 none      -    call
random_unwrap               none      -    call
random_clone                none      -    call
threefry2x32                none      -    call
rng_bit_generator           none      -    call
rng_uniform                 none      -    call
lu_pivots_to_permutation    none      -    call
iota_2x32_shape             none      -    call
dim_as_value                none      -    call
dimension_size              none      -    call
shape_assertion             none      -    call
platform_index              none      -    call
approx_top_k                none      -    call
inspect_sharding            none      -    call
SearchSorted                none      -    call
Nonzero                     none      -    call
"""
"""One line a primitive. What has a program inside is not here: its program is looked into.

Left out on purpose, each because a derivative by its rule need not be symmetric:
`cholesky` and `eigh` read one triangle of their operand and differentiate both; complex `eigh`,
`svd`, `qr` and `eig` choose a phase that their rules do not follow; `custom_linear_solve` and
`linear_call` are as true as the pair of functions that they were given.

`convert_element_type` is linear, though a cast to integers is not: the walk over linear values
looks at the types. `reduce_precision` rounds, and has the derivative of a function that does not.
"""

_FREE = (Work.SAME, Work.SPREAD, Work.MOVE)


def _row(derivative: str, linear: str, work: str, *also: str) -> Row:
    """A row from its words; ValueError or TypeError where one is unknown."""
    kind, _, once = derivative.partition("=")
    true = {"true": True, "finite": True, "none": True, "once": False}[kind]
    names = {"result": "reads_result", "sign": "keeps_sign"}
    flags = {names.get(word, word): True for word in also if "=" not in word}
    zero = next((int(word.removeprefix("zero=")) for word in also if "=" in word), None)
    return Row(
        true=true,
        finite=kind in ("finite", "none"),
        flat=kind == "none",
        once=tuple(map(int, once.split(","))) if once else (),
        linear=() if linear == "-" else tuple(map(_operands, linear.split("|"))),
        work=Work(work),
        singular_at=zero,
        **{"free": Work(work) in _FREE, "exact": Work(work) in _FREE or "free" in also, **flags},
    )


def _operands(text: str) -> Operands:
    if text == "all":
        return ALL
    return slice(int(text[:-1]), None) if text.endswith(":") else tuple(map(int, text.split(",")))


_LINES = (line.split() for line in _ROWS.splitlines() if line and not line.startswith("#"))
TABLE: dict[str, Row] = {name: _row(*words) for name, *words in _LINES}
"""The rows by the primitives' names."""

OPENED = frozenset({"scan", "while", "cond", "jit", "closed_call", "remat2"})
"""Equations whose programs are looked into and rewritten. Custom rules keep theirs."""

CUSTOM_RULES = frozenset({"custom_jvp_call", "custom_vjp_call"})
"""Calls of functions that have a derivative rule of their own."""

PROGRAM_OF = {
    **dict.fromkeys(("jit", "remat2", "shard_map"), "jaxpr"),
    **dict.fromkeys(("closed_call", "eval_jaxpr"), "call_jaxpr"),
}
"""Equations that run one program, once and on their own operands; the parameter that holds it."""

_SQUARE = Row(true=True)
_OVER_A_CONSTANT = _row("finite", "0", "costly", "library")
_POLYNOMIAL = replace(TABLE["integer_pow"], finite=True)


def row_by_name(equation: Any) -> Row:
    """The row for an equation's primitive.

    Arguments:
        equation: of a jaxpr, or what an operation of the IR keeps of one.
    """
    return TABLE.get(primitive_name(equation), UNKNOWN)


def row_of(equation: Any) -> Row:
    """The row for an equation's primitive, with what its operands decide.

    Arguments:
        equation: of a jaxpr, without a program inside.
    """
    name = primitive_name(equation)
    if name == "div" and isinstance(equation.invars[1], Literal) and equation.invars[1].val != 0:
        return _OVER_A_CONSTANT
    if name in ("svd", "qr") and not any(var.aval.dtype.kind == "c" for var in equation.invars):
        return _SQUARE
    if name == "integer_pow" and equation.params["y"] >= 0:
        return _POLYNOMIAL
    return row_by_name(equation)
