"""Metagradient descent: how much should each training example count in a whole training run?

A small classifier of handwritten digits (theta) is trained from scratch by a thousand steps of
gradient descent with momentum, on batches in an order drawn once. Three labels out of ten are
wrong, and nobody says which. eta is one weight for each training example, between 0 and 1 and the
same in every epoch; the meta-loss is the validation loss after the last step, and its gradient goes
back through the whole run. Such metagradients differ in size by orders of magnitude, so each
weight takes a step of fixed length along the sign of its own.

With all weights 1 the classifier learns the wrong labels by heart.

Paper: Engstrom et al., "Optimizing ML Training with Metagradient Descent" (2025, arXiv 2503.13751).

Expect: the meta-loss falls from 0.93 to 0.31 in the 12 meta steps of `train()`; after 11 the mean
weight of the wrong labels is 0.28, and that of the right ones 0.70.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import mixflow

PIXELS = 64
HIDDEN = 64
CLASSES = 10
TRAINING = 500
CORRUPTED = 150
BATCH = 50
INNER_STEPS = 1000
LEARNING_RATE = 0.05
MOMENTUM = 0.9
META_STEP = 0.2


def initial_theta(key):
    """The classifier's weights: one pair of matrix and bias for each layer."""
    widths = PIXELS, HIDDEN, CLASSES
    keys = jax.random.split(key, len(widths) - 1)
    glorot_normal = jax.nn.initializers.glorot_normal()
    return [
        {"matrix": glorot_normal(key, shape), "bias": jnp.zeros(shape[1])}
        for key, shape in zip(keys, itertools.pairwise(widths), strict=True)
    ]


def classifier(theta, images):
    """Logits of the digits."""
    hidden_layer, output_layer = theta
    x = jnp.tanh(images @ hidden_layer["matrix"] + hidden_layer["bias"])
    return x @ output_layer["matrix"] + output_layer["bias"]


def example_losses(theta, data):
    images, labels = data
    logits = classifier(theta, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def weighted_loss(theta, weights, data):
    return jnp.mean(weights * example_losses(theta, data))


@mixflow.compile
def meta_loss(eta, theta, order, training, validation):
    """Validation loss after one step on each of the batches, whose examples `order` names."""
    optimiser = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)

    def step(carry, batch):
        theta, state = carry
        data = jax.tree.map(lambda column: column[batch], training)
        gradient = jax.grad(weighted_loss)(theta, eta[batch], data)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(theta, updates), state), None

    (theta, _), _ = jax.lax.scan(step, (theta, optimiser.init(theta)), order)
    return example_losses(theta, validation).mean()


def read_digits():
    """Images and labels; the first of those for training are labelled wrong."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(len(images))
    images = (images[shuffled] / 8 - 1).astype(jnp.result_type(float))
    labels = labels[shuffled].astype(np.int32)
    labels[:CORRUPTED] += rng.integers(1, CLASSES, size=CORRUPTED, dtype=np.int32)
    labels %= CLASSES
    training, validation = zip(
        *[np.split(column, [TRAINING]) for column in (images, labels)], strict=True
    )
    return training, validation


def batch_order(seed):
    """The examples of each batch, epoch after epoch, every epoch in an order of its own."""
    rng = np.random.default_rng(seed)
    epochs = -(-INNER_STEPS * BATCH // TRAINING)
    examples = np.concatenate([rng.permutation(TRAINING) for _ in range(epochs)])
    return examples[: INNER_STEPS * BATCH].reshape(INNER_STEPS, BATCH).astype(np.int32)


@meta_loss.example_args
def _():
    return jnp.ones(TRAINING), initial_theta(jax.random.key(0)), batch_order(0), *read_digits()


def train(steps: int = 12, seed: int = 0) -> list[float]:
    """Find the weights by signed metagradient descent; returns the meta-loss at every step."""
    eta, theta = jnp.ones(TRAINING), initial_theta(jax.random.key(seed))
    run = theta, batch_order(seed), *read_digits()

    @jax.jit
    def meta_step(eta, *run):
        value, gradient = jax.value_and_grad(meta_loss)(eta, *run)
        return jnp.clip(eta - META_STEP * jnp.sign(gradient), 0, 1), value

    losses = []
    for step in range(steps):
        wrong, right = eta[:CORRUPTED].mean(), eta[CORRUPTED:].mean()
        eta, value = meta_step(eta, *run)
        losses.append(float(value))
        print(
            f"step {step:2}  meta-loss {value:.3f}  "
            f"mean weight of wrong labels {wrong:.2f}, of right ones {right:.2f}"
        )
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"meta-loss: first {losses[0]:.3f}, last {losses[-1]:.3f}")
