"""Learned optimizer: learn the update rule itself, a small network applied to every parameter.

eta is the weights of a network with some thirty hidden units. For each single parameter of a model
it reads the gradient, three momenta, a second moment, the parameter and the time, and puts out the
direction and the size of the parameter's update. theta is the model: a classifier of handwritten
digits, trained from scratch with this rule in place of Adam. The meta-loss is the mean training
loss along the way, so it rewards learning fast; its gradient goes back through every update.

Whole training runs are long, so they are cut: one meta step differentiates through 20 updates, and
the next one goes on where it stopped ("truncated unrolls"). Five runs go on side by side, one fifth
of a training apart, so that the rule is learned for all stages of training at once.

Papers: Metz et al., "Practical tradeoffs between memory, compute, and performance in learned
optimizers" (CoLLAs 2022, arXiv 2203.11860), for the network and its features; Metz et al., "VeLO:
Training Versatile Learned Optimizers by Scaling Up" (2022, arXiv 2211.09760); "PyLO: Towards
Accessible Learned Optimizers in PyTorch" (2025, arXiv 2506.10315).

Expect: the meta-loss falls from 2.5 to 0.5 (means of five steps) in the 40 meta steps of
`train()`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import mixflow

HIDDEN = 32
BATCH = 64
RUNS = 5
TRUNCATION = 20
OPTIMIZER_HIDDEN = 32
MOMENTUM_DECAYS = (0.5, 0.9, 0.99)
SECOND_MOMENT_DECAY = 0.99
TIME_SCALES = (3, 10, 30, 100)
STEP_SIZE = 0.01
SIZE_SCALE = 0.1
META_LEARNING_RATE = 0.001


class Run(NamedTuple):
    """A training run under way: the model, what the optimizer remembers, and its age in updates."""

    theta: dict[str, jax.Array]
    momenta: dict[str, jax.Array]
    second_moment: dict[str, jax.Array]
    age: jax.Array


def start_run(key):
    hidden_key, output_key = jax.random.split(key)
    glorot_normal = jax.nn.initializers.glorot_normal()
    theta = {
        "hidden": glorot_normal(hidden_key, (64, HIDDEN)),
        "output": glorot_normal(output_key, (HIDDEN, 10)),
    }
    momenta = jax.tree.map(lambda p: jnp.zeros((*p.shape, len(MOMENTUM_DECAYS))), theta)
    return Run(theta, momenta, jax.tree.map(jnp.zeros_like, theta), jnp.asarray(0))


def initial_eta(key):
    """The optimizer's network: small random updates at first, which teach the model nothing."""
    features = len(MOMENTUM_DECAYS) + len(TIME_SCALES) + 3
    hidden_key, output_key = jax.random.split(key)
    lecun_normal = jax.nn.initializers.lecun_normal()
    return {
        "hidden": lecun_normal(hidden_key, (features, OPTIMIZER_HIDDEN)),
        "hidden_bias": jnp.zeros(OPTIMIZER_HIDDEN),
        "output": 0.1 * lecun_normal(output_key, (OPTIMIZER_HIDDEN, 2)),
    }


def training_loss(theta, images, labels):
    logits = jax.nn.relu(images @ theta["hidden"]) @ theta["output"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def decay(old, new, rate):
    return rate * old + (1 - rate) * new


def normalise(features):
    """Each feature with a mean square of one over its array, so that no scale matters."""
    over_array = tuple(range(features.ndim - 1))
    mean_square = jnp.mean(features**2, axis=over_array, keepdims=True)
    return features * jax.lax.rsqrt(mean_square + 1e-6)


def parameter_update(eta, parameter, gradient, momenta, second_moment, age):
    """The update of every parameter in one array, by the same network."""
    inputs = jnp.stack([gradient, second_moment, parameter], axis=-1)
    inputs = normalise(jnp.concatenate([inputs, momenta], axis=-1))
    time = jnp.tanh(age / jnp.asarray(TIME_SCALES, parameter.dtype) - 1)
    time = jnp.broadcast_to(time, (*parameter.shape, len(TIME_SCALES)))
    inputs = jnp.concatenate([inputs, time], axis=-1)
    hidden = jax.nn.relu(inputs @ eta["hidden"] + eta["hidden_bias"])
    direction, log_size = jnp.moveaxis(hidden @ eta["output"], -1, 0)
    return STEP_SIZE * direction * jnp.exp(SIZE_SCALE * log_size)


def update_run(eta, run, batch):
    """The run after one update, and the loss before it."""
    loss, gradient = jax.value_and_grad(training_loss)(run.theta, *batch)
    decays = jnp.asarray(MOMENTUM_DECAYS, loss.dtype)
    momenta = jax.tree.map(lambda m, g: decay(m, g[..., None], decays), run.momenta, gradient)
    second_moment = jax.tree.map(
        lambda v, g: decay(v, g**2, SECOND_MOMENT_DECAY), run.second_moment, gradient
    )
    updates = jax.tree.map(
        lambda p, g, m, v: parameter_update(eta, p, g, m, v, run.age),
        run.theta,
        gradient,
        momenta,
        second_moment,
    )
    theta = jax.tree.map(jnp.subtract, run.theta, updates)
    return Run(theta, momenta, second_moment, run.age + 1), loss


def unroll(eta, run, batches):
    run, losses = jax.lax.scan(lambda run, batch: update_run(eta, run, batch), run, batches)
    return losses.mean(), run


@mixflow.compile
def meta_loss(eta, runs, batches):
    """Mean training loss over the next updates of all runs; and the runs after them."""
    losses, runs = jax.vmap(unroll, in_axes=(None, 0, 0))(eta, runs, batches)
    return losses.mean(), runs


def read_digits():
    images, labels = load_digits(return_X_y=True)
    return (images / 8 - 1).astype(jnp.result_type(float)), labels.astype(np.int32)


def sample_batches(rng, digits):
    images, labels = digits
    chosen = rng.integers(len(images), size=(RUNS, TRUNCATION, BATCH))
    return images[chosen], labels[chosen]


@meta_loss.example_args
def _():
    eta_key, run_key = jax.random.split(jax.random.key(0))
    runs = jax.vmap(start_run)(jax.random.split(run_key, RUNS))
    return initial_eta(eta_key), runs, sample_batches(np.random.default_rng(0), read_digits())


def restart(runs, number, key):
    """The same runs, one of them begun again."""
    return jax.tree.map(lambda all_, one: all_.at[number].set(one), runs, start_run(key))


def train(steps: int = 40, seed: int = 0) -> list[float]:
    """Meta-train the optimizer with Adam; returns the meta-loss at every step."""
    eta_key, run_key, restart_key = jax.random.split(jax.random.key(seed), 3)
    eta = initial_eta(eta_key)
    runs = jax.vmap(start_run)(jax.random.split(run_key, RUNS))
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(META_LEARNING_RATE))
    state = optimiser.init(eta)

    @jax.jit
    def meta_step(eta, state, runs, batches, step):
        runs = restart(runs, step % RUNS, jax.random.fold_in(restart_key, step))
        loss_and_gradient = jax.value_and_grad(meta_loss, has_aux=True)
        (loss, runs), gradient = loss_and_gradient(eta, runs, batches)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(eta, updates), state, runs, loss

    rng, digits = np.random.default_rng(seed), read_digits()
    losses = []
    for step in range(steps):
        eta, state, runs, loss = meta_step(eta, state, runs, sample_batches(rng, digits), step)
        losses.append(float(loss))
        if step % 10 == 0:
            print(f"step {step:3}  meta-loss {loss:.3f}")
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"meta-loss: first {np.mean(losses[:5]):.3f}, last {np.mean(losses[-5:]):.3f}")
