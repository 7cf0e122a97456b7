"""Tell JAX of the meshes inside symbolic derivatives, where `jax.jit` does not look for devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr, jaxprs_in_params
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixflow.compiler.derivative.vjp_primitive import SYMBOLIC


def on_hidden_meshes(closed: ClosedJaxpr, results: Sequence[Any]) -> list[Any]:
    """A program's results, one of them said to be on the mesh that its derivatives are on.

    `jax.jit` takes the devices of the meshes that it finds in a program, and does not look into
    symbolic derivatives. Nothing else is said: how the result is sharded stays open.

    Arguments:
        closed: the program, as it was traced into a jit.
        results: tracers, or constants.
    """
    results = list(results)
    traced = [position for position, one in enumerate(results) if isinstance(one, jax.core.Tracer)]
    hidden = _hidden_equations(closed.jaxpr, hidden=False)
    mesh = next((mesh for eqn in hidden for mesh in _meshes(eqn.params)), None)
    if mesh is None or not traced:
        return results
    first = traced[0]
    anyhow = PartitionSpec(*[PartitionSpec.UNCONSTRAINED] * results[first].ndim)
    sharding = NamedSharding(mesh, anyhow)
    results[first] = jax.lax.with_sharding_constraint(results[first], sharding)
    return results


def _hidden_equations(jaxpr: Any, *, hidden: bool) -> Iterator[Any]:
    """The equations inside symbolic derivatives."""
    for eqn in jaxpr.eqns:
        if hidden:
            yield eqn
        if eqn.primitive in SYMBOLIC:
            yield from _hidden_equations(eqn.params["function"].jaxpr.jaxpr, hidden=True)
        for inner in jaxprs_in_params(eqn.params):
            yield from _hidden_equations(inner, hidden=hidden)


def _meshes(params: dict[str, Any]) -> list[Mesh]:
    """An equation's: a shard_map's, and those of the shardings that it mentions.

    An abstract mesh is left out: its devices are those of the arguments.
    """
    shardings = [value for value in params.values() if isinstance(value, NamedSharding)]
    meshes = [params.get("mesh"), *(sharding.mesh for sharding in shardings)]
    return [mesh for mesh in meshes if isinstance(mesh, Mesh) and not mesh.empty]
