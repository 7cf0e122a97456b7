"""Symbolic derivatives spelled out: the plain programs that they lower to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.vjp_primitive import SYMBOLIC, traced_definition
from mixflow.compiler.jaxprs.values import is_inexact, merge, partition, spec_of


def spell_out(eqn: Any) -> ClosedJaxpr:
    """A symbolic derivative's equation as the plain program that it lowers to.

    Raises:
        NameError: the function uses a mesh axis, which exists only inside of its shard_map.
    """
    avals = [var.aval for var in eqn.invars]
    mesh = next((aval.sharding.mesh for aval in avals if not aval.sharding.mesh.empty), None)
    if mesh is None or mesh == jax.sharding.get_abstract_mesh():
        return traced_definition(eqn.primitive, avals, eqn.params)
    # The program is looked at from outside of its shard_map, or of its mesh.
    varies = any(aval.manual_axis_type.varying for aval in avals)
    with jax_compat.inside_mesh(mesh, checks_varying=varies):
        return traced_definition(eqn.primitive, avals, eqn.params)


def spell_all_out(jaxpr: Jaxpr) -> None:
    """Spell out the symbolic derivatives in a program, as lowering it will: they are remembered.

    Raises:
        NotImplementedError: JAX does not differentiate one of them.
    """
    for eqn in jaxpr.eqns:
        if eqn.primitive in SYMBOLIC:
            try:
                spell_out(eqn)
            except NotImplementedError:
                raise
            except Exception:  # it needs a mesh, for instance: lowering has it, or says it better
                pass
        else:
            for inner in jaxprs_in_params(eqn.params):
                spell_all_out(inner)


def with_reverse_pass(closed: ClosedJaxpr) -> ClosedJaxpr:
    """A program with its reverse pass, in all inexact arguments; without, where it has none."""
    moves = [is_inexact(aval) for aval in closed.in_avals]
    counts = [is_inexact(aval) for aval in closed.out_avals]

    def forward_and_back(*args: Any) -> Any:
        moving, fixed = partition(moves, args)

        def objective(*moving: Any) -> Any:
            results = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *merge(moves, moving, fixed))
            return partition(counts, results)

        return _differentiated(objective, moving)

    specs = [spec_of(aval) for aval in closed.in_avals]
    try:
        return jax.make_jaxpr(forward_and_back)(*specs)
    except _NoReversePass:
        return closed


class _NoReversePass(Exception):
    """JAX cannot differentiate a program in reverse."""


def _differentiated(objective: Callable[..., Any], point: list[Any]) -> Any:
    try:
        results, pullback, rest = jax_compat.VJP_OF_JAX(objective, *point, has_aux=True)
        return results, rest, pullback([jnp.ones_like(result) for result in results])
    except (NotImplementedError, ValueError, TypeError) as error:
        # An operation without a rule; a while loop or a callback; a custom_linear_solve without a
        # transposed solve, or a custom rule that returns something else than it should.
        raise _NoReversePass from error
