"""Meta-gradients on eight simulated devices, by plain JAX and by mixflow: figures as JSON.

A program of its own: the number of devices is fixed when JAX starts, and the tests have one.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
from hlo import needs
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from planner.meta_losses import momentum_args, momentum_meta_loss
from support import relative_error

import mixflow
from mixflow.passes import DEFAULT_PIPELINE
from mixflow.runtime.measure import total_bytes

AUTO = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
EXPLICIT = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
SIZES = {"layers": 2, "batch": 64, "width": 16, "wide": 64}


def arguments(steps: int = 2) -> Any:
    """Steps small enough that rounding errors do not grow."""
    eta, theta, xs = momentum_args(steps=steps, **SIZES)
    return {**eta, "rate": eta["rate"] / 20}, theta, xs


def on(mesh: Any, tree: Any, *spec: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P(*spec))), tree)


def data_parallel(mesh: Any, steps: int = 2) -> Any:
    """Each device has an eighth of each batch, and all parameters."""
    eta, theta, xs = arguments(steps)
    eta = {"weights": on(mesh, eta["weights"], "d"), "rate": on(mesh, eta["rate"])}
    return eta, on(mesh, theta), on(mesh, xs, None, "d")


def fully_sharded(mesh: Any, steps: int = 2) -> Any:
    """As `data_parallel`, and an eighth of each parameter."""
    eta, theta, xs = data_parallel(mesh, steps)
    return eta, on(mesh, theta, "d"), xs


def sharded_steps(mesh: Any) -> Any:
    """Each device has the batches of its own steps: a loop over them has to fetch them."""
    eta, theta, xs = arguments(steps=7)
    return on(mesh, eta), on(mesh, theta), on(mesh, xs, "d")


def sharded_tasks(mesh: Any) -> Any:
    eta, theta, xs = arguments()
    tasks = jnp.stack([(1 + task / 8) * xs for task in range(8)])
    return on(mesh, eta), on(mesh, theta), on(mesh, tasks, "d")


def tasks_loss(eta: Any, theta: Any, tasks: Any) -> Any:
    return jnp.mean(jax.vmap(momentum_meta_loss, (None, None, 0))(eta, theta, tasks))


def standardized_loss(eta: Any, theta: Any, xs: Any) -> Any:
    """Parameters that something computed is multiplied with, as in a transformer."""

    def loss(theta: Any, x: Any) -> Any:
        for inward, outward in theta:
            x = x + jnp.tanh(jax.nn.standardize(x) @ inward) @ outward
        return jnp.mean(jnp.sum((x - 1.0) ** 2, 1))

    def step(theta: Any, x: Any) -> Any:
        gradient = jax.grad(loss)(theta, x)
        return jax.tree.map(lambda t, g: t - eta["rate"] * g, theta, gradient), None

    return loss(jax.lax.scan(step, theta, xs[:-1])[0], xs[-1])


def in_shard_map(mesh: Any, local_loss: Any) -> Any:
    """The mean of the devices' meta-losses, their gradients' sums taken by JAX."""

    def loss(eta: Any, theta: Any, xs: Any) -> Any:
        specs = ({"weights": P("d"), "rate": P()}, P(), P(None, "d"))

        def local(*args: Any) -> Any:
            return jax.lax.pmean(local_loss(*args), "d")

        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())(eta, theta, xs)

    return loss


def compared(loss: Any, args: Any, passes: str | None, optimised: Any = None) -> dict[str, Any]:
    """Figures of a meta-gradient by plain JAX and by mixflow.

    Arguments:
        optimised: a jitted meta-gradient, in place of mixflow's of `loss`.
    """
    gradient = jax.value_and_grad(loss)
    optimised = optimised or mixflow.compile(gradient, passes=passes)
    return _figures(*(f.lower(*args).compile() for f in (jax.jit(gradient), optimised)), args)


def _figures(before: Any, after: Any, args: Any) -> dict[str, Any]:
    """How the results of two compiled programs differ, and what each program needs."""
    expected, result = before(*args), after(*args)
    return {
        "error": relative_error(result, expected),
        "same_types": jax.tree.map(jax.typeof, result) == jax.tree.map(jax.typeof, expected),
        "same_shardings": all(jax.tree.leaves(jax.tree.map(_alike, result, expected))),
        "before": needs(before),
        "after": needs(after),
    }


def _alike(x: jax.Array, y: jax.Array) -> bool:
    return x.sharding.is_equivalent_to(y.sharding, x.ndim)


def reported(args: Any) -> dict[str, Any]:
    """As `compared`, of a report's programs, and with the temporaries that the report gives."""
    report = mixflow.compile(momentum_meta_loss).report(*args)
    before, after = report.programs.before.compiled, report.programs.after.compiled
    temporaries = [report.before.temp_bytes, report.after.temp_bytes]
    return {**_figures(before, after, args), "reported": temporaries}


def around_shard_map(mesh: Any) -> dict[str, Any]:
    """The arguments are on one device, and the mesh stands inside of a derivative alone."""
    return compared(in_shard_map(mesh, momentum_meta_loss), arguments(), None)


def inside_shard_map(mesh: Any) -> dict[str, Any]:
    inner = mixflow.compile(momentum_meta_loss)
    optimised = jax.jit(
        jax.value_and_grad(in_shard_map(mesh, inner)),
        compiler_options=mixflow.compiler_options() or None,
    )
    loss = in_shard_map(mesh, momentum_meta_loss)
    return compared(loss, data_parallel(mesh), None, optimised)


def within_a_budget() -> dict[str, Any]:
    """A plan for somewhat more than each device needs by the planner's balance, and for less."""
    eta, theta, xs = momentum_args(layers=1, batch=8, width=48, wide=48, steps=24)
    eta = {"weights": on(AUTO, eta["weights"], "d"), "rate": on(AUTO, eta["rate"])}
    args = eta, on(AUTO, theta, "d"), on(AUTO, xs, None, "d")
    gradient = jax.value_and_grad(momentum_meta_loss)
    balanced = mixflow.compile(gradient)
    needed = total_bytes(balanced.lower(*args).compile())
    budget = int(1.4 * needed)
    fitted = mixflow.compile(gradient, memory_budget=budget)
    least = mixflow.compile(gradient, memory_budget=int(0.8 * needed))
    return {
        "budget": budget,
        "used": total_bytes(fitted.lower(*args).compile()),
        "passes": fitted.optimised(*args).passes,
        "least": least.optimised(*args).passes,
        "balanced": balanced.optimised(*args).passes,
    }


def cases() -> dict[str, Any]:
    """Every case, by its name."""
    loss = momentum_meta_loss
    found = {
        "data-planned": reported(data_parallel(AUTO)),
        "parameters-planned": compared(loss, fully_sharded(AUTO, steps=7), None),
        "steps-segmented": compared(loss, sharded_steps(AUTO), DEFAULT_PIPELINE),
        "around-shard_map": around_shard_map(AUTO),
        "inside-shard_map": inside_shard_map(AUTO),
        "budget": within_a_budget(),
    }
    with jax.set_mesh(EXPLICIT):
        found["explicit-parameters-segmented"] = compared(
            loss, fully_sharded(EXPLICIT), DEFAULT_PIPELINE
        )
        found["explicit-parameters-planned"] = compared(
            loss, fully_sharded(EXPLICIT, steps=7), None
        )
        found["explicit-standardized-segmented"] = compared(
            standardized_loss, fully_sharded(EXPLICIT), DEFAULT_PIPELINE
        )
        found["explicit-tasks-planned"] = compared(tasks_loss, sharded_tasks(EXPLICIT), None)
    return found


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(json.dumps(cases()))
