"""keep-first-products: what parameters on several devices are first multiplied with is kept.

Types alone say how arrays are sharded: a mesh of one device does for all but the exchanges, which
`tests/sharding` counts.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from checking import (
    assert_idempotent,
    assert_right,
    check,
    ir,
    mlp_loss,
    optimised,
    run_and_measure,
)
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import assert_close

import mixflow
from mixflow.compiler.analysis.costs import program_cost
from mixflow.passes import DEFAULT_PIPELINE
from mixflow.passes.keep_first_products import KEPT

NAME = "keep-first-products"
BEFORE = (
    "canonicalize,cse,fuse-value-and-pullback,canonicalize,"
    "forward-over-reverse,checkpoint-inner-loop,save-inner-gradients,"
)
WIDTH = 4


@pytest.fixture(autouse=True)
def on_an_explicit_mesh():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        yield


def sharded(array: Any, *spec: Any) -> Any:
    return jax.device_put(array, NamedSharding(jax.sharding.get_mesh(), P(*spec)))


def arguments(*spec: Any, steps: int = 3, batch: int = 5, layers: int = 2, width: int = WIDTH):
    """eta, theta and the batches: parameters sharded as is said, the others on each device."""
    keys = jax.random.split(jax.random.key(0), layers + 1)
    theta = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys[1:]]
    eta = {"weights": jnp.linspace(-1.0, 1.0, batch), "rate": jnp.array(0.3)}
    xs = jax.random.normal(keys[0], (steps, batch, width))
    everywhere = [jax.tree.map(sharded, part) for part in (eta, xs)]
    return everywhere[0], [sharded(layer, *spec) for layer in theta], everywhere[1]


def meta_loss_of(loss: Any, rate: Any = None) -> Any:
    """The loss after gradient steps; at a constant rate, no backward pass reads a gradient."""

    def meta_loss(eta, theta, xs):
        def step(theta, x):
            gradient = jax.grad(loss)(theta, eta["weights"], x)
            return jax.tree.map(lambda t, g: t - (rate or eta["rate"]) * g, theta, gradient), None

        return loss(jax.lax.scan(step, theta, xs)[0], jnp.zeros_like(eta["weights"]), xs[0])

    return meta_loss


def in_half_precision(theta, weights, x):
    return mlp_loss([layer.astype(jnp.bfloat16) for layer in theta], weights, x)


def transposed(theta, weights, x):
    return mlp_loss([jnp.transpose(layer) for layer in theta], weights, x)


def read_twice(theta, weights, x):
    return mlp_loss(theta, weights, x) + 0.1 * jnp.sum(theta[0] ** 2)


def of_one_layout(theta, weights, x):
    layer = theta[0].T
    return mlp_loss([layer], weights, x) + jnp.mean(jnp.sin(2 * (x @ layer)))


meta_loss = meta_loss_of(mlp_loss)


# --- fires ------------------------------------------------------------------------------------


def test_the_product_stands_before_the_gradient_and_is_saved():
    check(
        ir(f"{BEFORE}{NAME}", jax.grad(meta_loss), *arguments("d")),
        """
        CHECK: jaxpr.checkpoint saving mixflow.inner_gradient
        CHECK: %[[P:[0-9]*]] = jaxpr.eqn dot_general
        CHECK-NEXT: %[[KEPT:[0-9]*]] = mixflow.name "mixflow.inner_gradient"(%[[P]])
        CHECK: mixflow.vjp [symmetric rule](%{{.*}}, %[[KEPT]], %{{.*}}<keep-first-products rewrote
        CHECK: jaxpr.eqn tanh
        CHECK: jaxpr.eqn dot_general
        CHECK: jaxpr.eqn dot_general
        CHECK: jaxpr.eqn add
        CHECK: mixflow.name "mixflow.inner_gradient"
        """,
    )


LAYOUTS = {"convert_element_type": (in_half_precision, "d"), "transpose": (transposed, None, "d")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_product_of_parameters_in_another_layout_is_kept_too(layout):
    loss, *spec = LAYOUTS[layout]
    text = ir(f"{BEFORE}{NAME}", jax.grad(meta_loss_of(loss)), *arguments(*spec))
    step = text.split("jaxpr.checkpoint saving")[1].split("mixflow.vjp")[0]
    assert re.search(rf"{layout}.*\n.*dot_general.*\n.*mixflow.name", step)


def test_it_is_kept_where_no_gradient_is():
    """Gradients that nobody reads are not saved, but what runs the loss again reads parameters."""
    text = ir(f"{BEFORE}{NAME}", jax.grad(meta_loss_of(mlp_loss, 0.3)), *arguments("d"))
    assert "jaxpr.checkpoint saving" in text
    assert text.count("mixflow.name ") == 1


def test_every_level_keeps_it():
    passes = BEFORE.replace("inner-loop", "inner-loop{levels=2}")
    text = ir(f"{passes}{NAME}", jax.grad(meta_loss), *arguments("d", steps=9))
    assert text.count("jaxpr.checkpoint saving") == 2


def test_the_report_says_so():
    result = optimised(f"{BEFORE}{NAME}", jax.grad(meta_loss), *arguments("d"))
    assert [remark.text for remark in result.rewrites if remark.by == NAME] == [KEPT]


# --- does not fire ----------------------------------------------------------------------------


def assert_nothing_done(f: Any, *args: Any, before: str = BEFORE) -> None:
    text = ir(f"{before}dce", f, *args)
    assert "mixflow.vjp" in text
    assert ir(f"{before}dce,{NAME}", f, *args) == text


def test_not_where_parameters_are_on_each_device():
    assert_nothing_done(jax.grad(meta_loss), *arguments())


def test_not_where_devices_multiply_what_they_have():
    """Sharded by columns, the product is sharded as the parameters are: nothing is exchanged."""

    def loss(theta, weights, x):
        y = jnp.tanh(x @ theta[0])
        return jnp.mean(jax.nn.sigmoid(weights) * jnp.sum(y**2, 1))

    assert_nothing_done(jax.grad(meta_loss_of(loss)), *arguments(None, "d"))


def test_not_where_the_gradient_is_not_rewritten():
    without = BEFORE.replace("forward-over-reverse,", "")
    assert_nothing_done(jax.grad(meta_loss), *arguments("d"), before=without)


def test_not_where_the_other_factor_is_computed():
    def loss(theta, weights, x):
        return mlp_loss(theta, weights, jnp.sin(x))

    assert_nothing_done(jax.grad(meta_loss_of(loss)), *arguments("d"))


# --- idempotent, right, and small ---------------------------------------------------------------


def test_it_is_idempotent():
    assert_idempotent(BEFORE, NAME, jax.grad(meta_loss), *arguments("d"))


@pytest.mark.parametrize("passes", [f"{BEFORE}{NAME}", DEFAULT_PIPELINE, None])
@pytest.mark.parametrize("loss", [mlp_loss, transposed, read_twice, of_one_layout])
def test_the_numbers_stay(loss, passes):
    spec = (None, "d") if loss in (transposed, of_one_layout) else ("d",)
    f, args = meta_loss_of(loss), arguments(*spec)
    if passes is not None:
        assert KEPT in [remark.text for remark in optimised(passes, jax.grad(f), *args).rewrites]
    assert_right(f, *args, passes=passes)


def test_the_numbers_stay_where_the_data_is_learned():
    def meta_loss(xs, theta, weights):
        return meta_loss_of(mlp_loss)({"weights": weights, "rate": jnp.array(0.3)}, theta, xs)

    eta, theta, xs = arguments("d")
    assert NAME in {
        remark.by
        for remark in optimised(
            f"{BEFORE}{NAME}", jax.grad(meta_loss), xs, theta, eta["weights"]
        ).rewrites
    }
    assert_right(meta_loss, xs, theta, eta["weights"], passes=f"{BEFORE}{NAME}")


def test_the_numbers_stay_in_third_order():
    def curvature(eta, *rest):
        gradient = jax.grad(meta_loss)(eta, *rest)
        return jnp.sum(gradient["weights"] ** 2) + gradient["rate"] ** 2

    assert_right(curvature, *arguments("d"), passes=f"{BEFORE}{NAME}")


def test_the_product_is_not_computed_again():
    args = arguments("d", batch=100)
    g = jax.grad(meta_loss)
    without, kept = (
        program_cost(mixflow.compile(g, passes=passes).trace(*args).jaxpr).flops
        for passes in (BEFORE[:-1], f"{BEFORE}{NAME}")
    )
    assert without is not None
    assert kept is not None
    steps, batch, width = args[2].shape
    assert kept <= without - 0.8 * steps * 2 * batch * width**2


def test_what_is_kept_are_the_products_alone():
    batch, width, steps = 256, 32, 4
    args = arguments("d", steps=steps, batch=batch, layers=6, width=width)
    g = jax.grad(meta_loss)
    expected, plain = run_and_measure(jax.jit(g), *args)
    _, without = run_and_measure(mixflow.compile(g, passes=BEFORE[:-1]), *args)
    result, kept = run_and_measure(mixflow.compile(g, passes=f"{BEFORE}{NAME}"), *args)
    assert_close(result, expected)
    product = batch * width * args[2].dtype.itemsize
    assert kept < without + 1.1 * steps * product
    assert kept < 0.6 * plain
