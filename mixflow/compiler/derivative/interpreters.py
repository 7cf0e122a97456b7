"""Interpreters that know nothing of symbolic derivatives are given JAX's own equations.

There are two kinds. Some see a program while it runs, as a trace: `jet`, `sparsify` by tracers,
another library's. What is bound under such a trace is bound there as the plain JAX that it stands
for. Others walk over a jaxpr that was traced before: `checkify`, `sparsify`. Those have a table of
rules, in which each symbolic derivative has one: walk over its plain program in its place.

`jax_compat.interpreter_around` finds both kinds while something is traced; capture then leaves the
derivative to JAX, to the letter. The rules here are for programs that JAX traced before and kept:

    gradient = jax.jit(jax.grad(loss))     # called under mixflow: a symbolic equation, which JAX
    checkify.checkify(gradient)(x)         # finds in its cache and hands to checkify
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import jax
import jax.core
from jax.extend.core import Primitive

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.vjp_primitive import SYMBOLIC, plain_program


def _run_plainly(primitive: Primitive, *operands: Any, **params: Any) -> list[Any]:
    closed = plain_program(primitive, list(map(jax.typeof, operands)), params)
    return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *operands)


def _sparsify_plainly(primitive: Primitive, environment: Any, *values: Any, **params: Any) -> Any:
    transform = sys.modules["jax.experimental.sparse.transform"]
    avals = transform.spvalues_to_avals(environment, values)
    closed = plain_program(primitive, avals, params)
    return transform.eval_sparse(closed.jaxpr, closed.consts, values, environment)


def register() -> None:
    """Make mixflow's primitives known, or unnoticed, to every interpreter of JAX's."""
    for primitive in SYMBOLIC:
        jax_compat.bind_plainly_for_strangers(primitive, partial(_run_plainly, primitive))
        jax_compat.register_with_checkify(primitive, partial(plain_program, primitive))
    register_with_sparsify()


def register_with_sparsify() -> None:
    """The same for `jax.experimental.sparse`, if it is imported: it takes SciPy half a second."""
    transform = sys.modules.get("jax.experimental.sparse.transform")
    if transform is None:
        return
    for primitive in SYMBOLIC:
        # Those of BCSR matrices are not needed: they get through no jit, and no loop either.
        transform.sparse_rules_bcoo[primitive] = partial(_sparsify_plainly, primitive)
