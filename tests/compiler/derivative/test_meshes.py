"""A program whose mesh stands in a derivative alone says it once more, and no other one does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support import captures, equations

from mixflow.compiler.derivative.meshes import on_hidden_meshes

X = jnp.ones(4)


def spread(x: Any) -> Any:
    mesh = Mesh(np.array(jax.devices()[:1]), ("rows",))
    return jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, PartitionSpec("rows")))


def constraints_added(closed: Any) -> int:
    """How many a program is given, as it is traced into a jit."""

    def staged(x: Any) -> Any:
        return on_hidden_meshes(closed, [x])

    traced = jax.make_jaxpr(jax.jit(staged))(X)
    return sum(eqn.primitive.name == "sharding_constraint" for eqn in equations(traced.jaxpr))


def test_a_mesh_that_the_program_shows_is_not_said_again() -> None:
    assert constraints_added(jax.make_jaxpr(spread)(X)) == 0


def test_a_mesh_in_a_derivative_is() -> None:
    captured = captures(jax.grad(lambda x: jnp.sum(spread(x))), X)
    assert constraints_added(captured.jaxpr) == 1
