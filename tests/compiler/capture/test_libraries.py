"""Inner loops written with the usual libraries: the meta-gradient is plain JAX's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_same_meta_gradient, suspects

INPUTS = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
TARGETS = jnp.array([0, 1, 1, 0])
ETA = jnp.array([0.4, -0.3, 0.8, 0.1])


def weighted(logits: Any, eta: Any) -> Any:
    """A cross-entropy whose weights are the meta-parameters."""
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), TARGETS[:, None], -1)[:, 0]
    return jnp.mean(jax.nn.sigmoid(eta) * losses)


def linear_loss(theta: Any, eta: Any) -> Any:
    return weighted(jax.nn.gelu(INPUTS @ theta["w"] + theta["b"]), eta)


THETA = {"w": jnp.eye(3, 2) + 0.1, "b": jnp.array([0.1, -0.2])}


OPTIMISERS = {
    "sgd with momentum": lambda optax, eta: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda optax, eta: optax.adam(0.1),
    "adamw with a schedule": lambda optax, eta: optax.adamw(
        optax.cosine_decay_schedule(0.1, 10), weight_decay=0.01
    ),
    "clip by global norm": lambda optax, eta: optax.chain(
        optax.clip_by_global_norm(0.05), optax.adam(0.1)
    ),
    "clip element-wise": lambda optax, eta: optax.chain(optax.clip(0.01), optax.sgd(0.1)),
    "rate from eta": lambda optax, eta: optax.sgd(jax.nn.softplus(eta[0])),
    "injected rate from eta": lambda optax, eta: optax.inject_hyperparams(optax.adam)(
        learning_rate=jax.nn.softplus(eta[0])
    ),
    "rmsprop": lambda optax, eta: optax.rmsprop(0.1, centered=True),
    "lion": lambda optax, eta: optax.chain(optax.scale_by_lion(), optax.scale(-0.1 * eta[1])),
    "multi-transform": lambda optax, eta: optax.multi_transform(
        {"fast": optax.adam(0.1), "slow": optax.sgd(eta[0])}, {"w": "fast", "b": "slow"}
    ),
    "masked": lambda optax, eta: optax.chain(
        optax.masked(optax.add_decayed_weights(0.1), {"w": True, "b": False}), optax.sgd(0.1)
    ),
    "multi-steps": lambda optax, eta: optax.MultiSteps(optax.adam(0.1), 2),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optax(name: str) -> None:
    optax = pytest.importorskip("optax")

    def meta_loss(eta: Any) -> Any:
        optimiser = OPTIMISERS[name](optax, eta)

        def step(carry: Any, _: Any) -> Any:
            theta, state = carry
            value, gradient = jax.value_and_grad(linear_loss)(theta, eta)
            updates, state = optimiser.update(gradient, state, theta)
            return (optax.apply_updates(theta, updates), state), value

        (theta, _), values = jax.lax.scan(step, (THETA, optimiser.init(THETA)), None, length=2)
        return linear_loss(theta, jnp.ones(4)) + jnp.sum(values**2)

    assert_same_meta_gradient(meta_loss, ETA)


@pytest.mark.parametrize(
    "name", ["softmax_cross_entropy_with_integer_labels", "softmax_cross_entropy", "l2_loss",
             "sigmoid_binary_cross_entropy", "huber_loss", "kl_divergence", "ctc_loss",
             "poly_loss_cross_entropy"],
)  # fmt: skip
def test_optax_losses_are_symmetric(name: str) -> None:
    optax = pytest.importorskip("optax")
    one_hot = jax.nn.one_hot(TARGETS, 2)

    def evaluate(logits: Any) -> Any:
        if name == "ctc_loss":
            padding = jnp.zeros((1, 4))
            return optax.losses.ctc_loss(
                logits[None], padding, jnp.ones((1, 1), int), padding[:, :1]
            )
        if name == "kl_divergence":
            return optax.losses.kl_divergence(jax.nn.log_softmax(logits), one_hot)
        integers = name.endswith("integer_labels")
        return getattr(optax.losses, name)(logits, TARGETS if integers else one_hot)

    def meta_loss(eta: Any) -> Any:
        def loss(theta: Any) -> Any:
            return jnp.mean(evaluate(INPUTS @ theta["w"] * eta[:, None] + theta["b"]))

        gradient = jax.grad(loss)(THETA)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

    trace = assert_same_meta_gradient(meta_loss, ETA)
    assert_symmetric(trace)


def assert_symmetric(trace: Any) -> None:
    assert not suspects(trace)
    assert not trace.declines


def meta_loss_of(loss: Any, theta: Any) -> Any:
    """Two steps of gradient descent on `loss(theta, eta)`, from `theta`."""

    def meta_loss(eta: Any) -> Any:
        def step(theta: Any, _: Any) -> Any:
            value, gradient = jax.value_and_grad(loss)(theta, eta)
            return jax.tree.map(lambda t, g: t - 0.1 * g, theta, gradient), value

        last, values = jax.lax.scan(step, theta, None, length=2)
        return loss(last, jnp.ones(4)) + jnp.sum(values**2)

    return meta_loss


def test_flax_linen() -> None:
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.LayerNorm(param_dtype=jnp.float64)(x)
            x = linen.relu(linen.Dense(4, param_dtype=jnp.float64)(x))
            x = linen.Dropout(0.5, deterministic=False)(x)
            return linen.Dense(2, param_dtype=jnp.float64)(x)

    model, key = Model(), jax.random.key(0)
    theta = model.init({"params": key, "dropout": key}, INPUTS)

    def loss(theta: Any, eta: Any) -> Any:
        return weighted(model.apply(theta, INPUTS, rngs={"dropout": key}), eta)

    assert_symmetric(assert_same_meta_gradient(meta_loss_of(loss, theta), ETA))


def test_flax_linen_with_lifted_scan_remat_and_statistics() -> None:
    linen = pytest.importorskip("flax.linen")

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x: Any, _: Any) -> Any:
            x = linen.BatchNorm(use_running_average=False, param_dtype=jnp.float64)(x)
            return jnp.tanh(linen.Dense(3, param_dtype=jnp.float64)(x)), None

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            axes = {"params": 0, "batch_stats": 0}
            layers = linen.scan(linen.remat(Block), axes, split_rngs={"params": True}, length=2)
            return layers()(x, None)[0][:, :2]

    model = Model()
    variables = model.init(jax.random.key(0), INPUTS)

    def meta_loss(eta: Any) -> Any:
        def loss(theta: Any, statistics: Any) -> Any:
            variables = {"params": theta, "batch_stats": statistics}
            logits, updated = model.apply(variables, INPUTS, mutable=["batch_stats"])
            return weighted(logits, eta), updated["batch_stats"]

        theta, statistics = variables["params"], variables["batch_stats"]
        for _ in range(2):
            gradient, statistics = jax.grad(loss, has_aux=True)(theta, statistics)
            theta = jax.tree.map(lambda t, g: t - 0.1 * g, theta, gradient)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves((theta, statistics)))

    assert_symmetric(assert_same_meta_gradient(meta_loss, ETA, tolerance=1e-6))


def nnx_model(nnx: Any) -> Any:
    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Linear(3, 4, param_dtype=jnp.float64, rngs=rngs)
            self.second = nnx.Linear(4, 2, param_dtype=jnp.float64, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.second(nnx.silu(self.first(x)))

    return Model(nnx.Rngs(0))


@pytest.mark.parametrize("form", ["grad", "value_and_grad"])
def test_flax_nnx(form: str) -> None:
    nnx = pytest.importorskip("flax.nnx")

    def meta_loss(eta: Any) -> Any:
        model = nnx_model(nnx)
        for _ in range(2):
            result = getattr(nnx, form)(lambda model: weighted(model(INPUTS), eta))(model)
            gradient = result[1] if form == "value_and_grad" else result
            params = nnx.state(model, nnx.Param)
            nnx.update(model, jax.tree.map(lambda t, g: t - 0.1 * g, params, gradient))
        return weighted(model(INPUTS), jnp.ones(4)) + jnp.sum(model.first.kernel[...] ** 2)

    assert_same_meta_gradient(meta_loss, ETA)


def test_flax_nnx_functional() -> None:
    nnx = pytest.importorskip("flax.nnx")
    graph, state = nnx.split(nnx_model(nnx))

    def loss(state: Any, eta: Any) -> Any:
        return weighted(nnx.merge(graph, state)(INPUTS), eta)

    assert_symmetric(assert_same_meta_gradient(meta_loss_of(loss, state), ETA))


def test_haiku() -> None:
    haiku = pytest.importorskip("haiku")

    def forward(x: Any) -> Any:
        x = haiku.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        x = jax.nn.relu(haiku.Linear(4)(x))
        return haiku.Linear(2)(haiku.dropout(haiku.next_rng_key(), 0.5, x))

    model, key = haiku.transform(forward), jax.random.key(0)
    theta = model.init(key, INPUTS)

    def loss(theta: Any, eta: Any) -> Any:
        return weighted(model.apply(theta, key, INPUTS), eta)

    assert_symmetric(assert_same_meta_gradient(meta_loss_of(loss, theta), ETA))


def test_haiku_grad_inside_a_transformed_function() -> None:
    haiku = pytest.importorskip("haiku")

    def forward(eta: Any) -> Any:
        layer = haiku.Linear(2)
        layer(INPUTS)
        gradient = haiku.grad(lambda x: weighted(layer(x), eta))(INPUTS)
        return jnp.sum(weighted(layer(INPUTS - 0.1 * gradient), jnp.ones(4)))

    model = haiku.without_apply_rng(haiku.transform(forward))
    theta = model.init(jax.random.key(0), ETA)
    assert_same_meta_gradient(lambda eta: model.apply(theta, eta), ETA)


def test_equinox_filter_value_and_grad() -> None:
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(3, 2, 4, 1, key=jax.random.key(0), dtype=jnp.float64)

    def meta_loss(eta: Any) -> Any:
        @equinox.filter_value_and_grad
        def loss(model: Any) -> Any:
            return weighted(jax.vmap(model)(INPUTS), eta)

        current, total = model, 0.0
        for _ in range(2):
            value, gradient = loss(current)
            total += value**2
            updates = jax.tree.map(lambda g: -0.1 * g, gradient)
            current = equinox.apply_updates(current, updates)
        return total + weighted(jax.vmap(current)(INPUTS), jnp.ones(4))

    assert_symmetric(assert_same_meta_gradient(meta_loss, ETA))


def test_equinox_filter_grad_with_aux_under_filter_jit() -> None:
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.Linear(3, 2, key=jax.random.key(0), dtype=jnp.float64)

    def meta_loss(eta: Any) -> Any:
        @equinox.filter_jit
        @equinox.filter_grad(has_aux=True)
        def gradient(model: Any, eta: Any) -> Any:
            logits = jax.vmap(model)(INPUTS)
            return weighted(logits, eta), ("logits", logits)

        result, (name, logits) = gradient(model, eta)
        assert name == "logits"
        return jnp.sum(result.weight**2) + jnp.sum(logits * result.bias)

    assert_symmetric(assert_same_meta_gradient(meta_loss, ETA))


def test_equinox_checkpointed_scan() -> None:
    equinox = pytest.importorskip("equinox")
    internal = pytest.importorskip("equinox.internal")

    def meta_loss(eta: Any) -> Any:
        def loss(theta: Any) -> Any:
            def body(hidden: Any, _: Any) -> Any:
                return jnp.tanh(hidden * eta), None

            return jnp.sum(internal.scan(body, theta, None, 4, kind="lax")[0] ** 2)

        return jnp.sum(equinox.filter_grad(loss)(ETA * 2) ** 2)

    assert_same_meta_gradient(meta_loss, ETA)
