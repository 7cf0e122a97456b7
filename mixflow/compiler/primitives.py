"""What mixflow knows of JAX's primitives: one row for each.

A primitive without a row, a third party's included, gets the row `UNKNOWN`, which is on the safe
side: its derivative is taken for suspect, and it is taken for linear in nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax.extend.core import Literal

from mixflow.compiler.jax_compat import primitive_name

Operands = slice | tuple[int, ...]
"""Some of an equation's operands."""

ALL = slice(None)


@dataclass(frozen=True)
class Row:
    """What is known of one primitive.

    Arguments:
        true: whether its derivative rules give the derivative of what it computes, so that second
            derivatives by them are symmetric.
        linear: sets of operands. In those of one set together it is linear, the others fixed:
            `sub` is linear in both operands together, `mul` in each of them alone.
        finite: whether its derivatives are finite wherever its value is.
        once: operands in which JAX has no second derivative of it, or none at all.
    """

    true: bool = False
    linear: tuple[Operands, ...] = ()
    finite: bool = False
    once: tuple[int, ...] = ()


UNKNOWN = Row()

_LINEAR = Row(true=True, linear=(ALL,), finite=True)
_IN_FIRST = Row(true=True, linear=((0,),), finite=True)
_BILINEAR = Row(true=True, linear=((0,), (1,)), finite=True)
_SMOOTH = Row(true=True, finite=True)
_SINGULAR = Row(true=True)
_CONSTANT = Row(true=True, finite=True)


def _rows(row: Row, names: str) -> dict[str, Row]:
    return dict.fromkeys(names.split(), row)


TABLE: dict[str, Row] = {
    # Linear in all operands together.
    **_rows(_LINEAR, "add add_any sub neg copy copy_p reshape squeeze expand_dims transpose rev"),
    **_rows(_LINEAR, "broadcast_in_dim slice split stack unstack tile concatenate pad"),
    **_rows(_LINEAR, "reduce_sum cumsum reduce_window_sum real imag conj complex fft"),
    **_rows(_LINEAR, "select_and_scatter_add name sharding_constraint reshard layout_constraint"),
    **_rows(_LINEAR, "device_put psum psum_invariant pvary pcast pbroadcast preduced ppermute"),
    **_rows(_LINEAR, "all_gather all_gather_invariant all_gather_reduced all_to_all"),
    **_rows(_LINEAR, "reduce_scatter unreduced_psum unreduced_reduce_scatter mesh_cast"),
    **_rows(_LINEAR, "optimization_barrier"),
    # A cast to integers is none: the walk over linear values looks at the types.
    **_rows(_LINEAR, "convert_element_type"),
    # Rounds, and has the derivative of a function that does not.
    "reduce_precision": Row(true=True, linear=(ALL,), finite=True),
    # Linear in some operands.
    "select_n": Row(true=True, linear=(slice(1, None),), finite=True),
    **_rows(_IN_FIRST, "dynamic_slice gather Ldexp"),
    "dynamic_update_slice": Row(true=True, linear=((0, 1),), finite=True),
    **_rows(Row(true=True, linear=((0, 2),), finite=True), "scatter scatter-add scatter-sub"),
    **_rows(_BILINEAR, "mul dot_general conv_general_dilated ragged_dot_general"),
    "div": Row(true=True, linear=((0,),)),
    "triangular_solve": Row(true=True, linear=((1,),)),
    "select_and_gather_add": Row(true=True, linear=((0,),)),
    # True derivatives that are finite wherever the value is.
    **_rows(_SMOOTH, "exp exp2 expm1 sin cos sinh cosh tanh logistic erf erfc atan asinh square"),
    **_rows(_SMOOTH, "one_minus_square abs sign max min clamp sort top_k cummax cummin"),
    **_rows(_SMOOTH, "cumlogsumexp reduce_max reduce_min reduce_window_max reduce_window_min"),
    **_rows(_SMOOTH, "bessel_i0e bessel_i1e polynomial Frexp"),
    # True derivatives that can be infinite, or can have no rule of their own.
    **_rows(_SINGULAR, "log log2 log1p sqrt rsqrt cbrt pow integer_pow tan asin acos acosh atanh"),
    **_rows(_SINGULAR, "atan2 rem erf_inv lgamma digamma cumprod reduce_prod lu"),
    **_rows(_SINGULAR, "scatter-mul scatter-min scatter-max tridiagonal_solve"),
    # Whether its derivative is the true one cannot be tried where there is no second.
    **_rows(Row(once=(0,)), "igamma igammac random_gamma polygamma"),
    **_rows(Row(once=(0, 1)), "regularized_incomplete_beta zeta"),
    # No derivative, or one that is zero: nothing to differentiate twice.
    **_rows(_CONSTANT, "stop_gradient floor ceil round is_finite argmax argmin iota empty empty2"),
    **_rows(_CONSTANT, "eq ne lt le gt ge eq_to lt_to le_to and or xor not nextafter"),
    **_rows(
        _CONSTANT, "shift_left shift_right_logical shift_right_arithmetic population_count clz"
    ),
    **_rows(_CONSTANT, "mulhi reduce_and reduce_or reduce_xor axis_index bitcast_convert_type"),
    **_rows(_CONSTANT, "random_seed random_bits random_fold_in random_split random_wrap"),
    **_rows(_CONSTANT, "random_unwrap random_clone threefry2x32 rng_bit_generator rng_uniform"),
    **_rows(_CONSTANT, "lu_pivots_to_permutation iota_2x32_shape dim_as_value dimension_size"),
    **_rows(_CONSTANT, "shape_assertion platform_index approx_top_k inspect_sharding"),
    **_rows(_CONSTANT, "SearchSorted Nonzero"),
}
"""Rows by the primitives' names. What has a program inside is not here: its program is looked into.

Left out on purpose, each because a derivative by its rule need not be symmetric:
`cholesky` and `eigh` read one triangle of their operand and differentiate both; complex `eigh`,
`svd`, `qr` and `eig` choose a phase that their rules do not follow; `custom_linear_solve` and
`linear_call` are as true as the pair of functions that they were given.
"""


def row_of(equation: Any) -> Row:
    """The row for an equation's primitive, with what its types decide.

    Arguments:
        equation: of a jaxpr, without a program inside.
    """
    name = primitive_name(equation)
    if name == "div" and isinstance(equation.invars[1], Literal) and equation.invars[1].val != 0:
        return _IN_FIRST
    if name in ("svd", "qr") and not any(_is_complex(var.aval) for var in equation.invars):
        return _SINGULAR
    return TABLE.get(name, UNKNOWN)


def _is_complex(aval: Any) -> bool:
    return aval.dtype.kind == "c"
