"""One of two processes with two devices each, which compute one meta-gradient together.

python two_processes.py COORDINATOR PLACE
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np
from hlo import needs
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from planner.meta_losses import momentum_args, momentum_meta_loss
from support import relative_error

import mixflow


def join(coordinator: str, place: int) -> None:
    """Meet the other process."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes=2, process_id=place)


def sharded(mesh: Any, values: Any, *spec: Any) -> Any:
    """Arrays over all processes' devices; each process has all of the values to begin with."""

    def put(value: Any) -> jax.Array:
        sharding = NamedSharding(mesh, P(*spec))
        return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

    return jax.tree.map(put, values)


def arguments(mesh: Any) -> Any:
    """Batches and parameters that are sharded over both processes."""
    eta, theta, xs = jax.tree.map(np.asarray, momentum_args(layers=1, batch=8, steps=2))
    eta = {"weights": sharded(mesh, eta["weights"], "d"), "rate": sharded(mesh, eta["rate"])}
    return eta, sharded(mesh, theta, "d"), sharded(mesh, xs, None, "d")


def local(tree: Any) -> Any:
    """What this process has of some arrays."""
    return [
        np.asarray(shard.data)
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
    ]


def compared() -> dict[str, Any]:
    """The meta-gradient by plain JAX and by mixflow."""
    args = arguments(jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,)))
    gradient = jax.value_and_grad(momentum_meta_loss)
    functions = jax.jit(gradient), mixflow.compile(gradient)
    before, after = (f.lower(*args).compile() for f in functions)
    expected, result = before(*args), after(*args)
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
    return {
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "error": relative_error(local(result), local(expected)),
        "before": needs(before),
        "after": needs(after),
        "same_shardings": all(x.sharding.is_equivalent_to(y.sharding, x.ndim) for x, y in pairs),
    }


if __name__ == "__main__":
    join(sys.argv[1], int(sys.argv[2]))
    print(json.dumps(compared()))
