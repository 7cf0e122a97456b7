"""Hyperparameters: learning rate, momentum and weight decay, through a whole training run.

A small network (theta) learns to tell which of three growers a wine is from by thirteen chemical
measurements: 500 steps of gradient descent with momentum and weight decay on all the training data.
eta is the learning rate, the momentum and the weight decay, and the meta-loss is the validation
loss after the last step. There are two ways to its gradient, the hypergradient:

- reverse mode goes back through the steps: its time doesn't grow with the number of
  hyperparameters, but it keeps something of every step;
- forward mode takes the derivatives of theta in each hyperparameter along with the training: its
  time grows with their number, its memory doesn't grow with the number of steps.

Both give the same numbers, and with three hyperparameters either will do.

Papers: Franceschi et al., "Forward and Reverse Gradient-Based Hyperparameter Optimization" (ICML
2017, arXiv 1703.01785), for both ways; Franceschi et al., "Bilevel Programming for Hyperparameter
Optimization and Meta-Learning" (ICML 2018, arXiv 1806.04910).

Expect: the meta-loss falls from 0.33 to 0.09 in the first ten of the 26 meta steps of `train()`, as
rate and momentum rise from 0.001 and 0.5 to 0.006 and 0.87, and stays there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_wine

import mixflow

MEASUREMENTS = 13
HIDDEN = 32
CLASSES = 3
TRAINING = 89
INNER_STEPS = 500
LEARNING_RATE = 0.001
MOMENTUM = 0.5
WEIGHT_DECAY = 0.001
META_LEARNING_RATE = 0.2


def initial_theta(key):
    """The network's weights: two hidden layers, and the output."""
    keys = jax.random.split(key, 3)
    glorot_normal = jax.nn.initializers.glorot_normal()
    shapes = (MEASUREMENTS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, CLASSES)
    return [
        {"matrix": glorot_normal(key, shape), "bias": jnp.zeros(shape[1])}
        for key, shape in zip(keys, shapes, strict=True)
    ]


def initial_eta():
    return {
        "log_rate": jnp.asarray(np.log(LEARNING_RATE)),
        "momentum_logit": jnp.asarray(np.log(MOMENTUM / (1 - MOMENTUM))),
        "log_decay": jnp.asarray(np.log(WEIGHT_DECAY)),
    }


def hyperparameters(eta):
    """Learning rate, momentum and weight decay, each in its range."""
    momentum = jax.nn.sigmoid(eta["momentum_logit"])
    return jnp.exp(eta["log_rate"]), momentum, jnp.exp(eta["log_decay"])


def network(theta, measurements):
    """Logits of the growers."""
    *hidden_layers, output_layer = theta
    x = measurements
    for layer in hidden_layers:
        x = jnp.tanh(x @ layer["matrix"] + layer["bias"])
    return x @ output_layer["matrix"] + output_layer["bias"]


def loss(theta, data):
    measurements, labels = data
    logits = network(theta, measurements)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@mixflow.compile
def meta_loss(eta, theta, training, validation):
    """Validation loss after training with these hyperparameters."""
    rate, momentum, decay = hyperparameters(eta)

    def momentum_step(carry, _):
        theta, velocity = carry
        gradient = jax.grad(loss)(theta, training)
        velocity = jax.tree.map(
            lambda v, g, p: momentum * v + g + decay * p, velocity, gradient, theta
        )
        theta = jax.tree.map(lambda p, v: p - rate * v, theta, velocity)
        return (theta, velocity), None

    start = theta, jax.tree.map(jnp.zeros_like, theta)
    (theta, _), _ = jax.lax.scan(momentum_step, start, length=INNER_STEPS)
    return loss(theta, validation)


def reverse_hypergradient(eta, *data):
    """The meta-loss, and its gradient back through the steps."""
    return jax.value_and_grad(meta_loss)(eta, *data)


def forward_hypergradient(eta, *data):
    """The meta-loss, and its gradient by one tangent for each hyperparameter."""

    def value_twice(eta):
        value = meta_loss(eta, *data)
        return value, value

    gradient, value = jax.jacfwd(value_twice, has_aux=True)(eta)
    return value, gradient


def read_wine():
    """Measurements, normalised, and labels for training and for validation."""
    measurements, labels = load_wine(return_X_y=True)
    measurements = (measurements - measurements.mean(axis=0)) / measurements.std(axis=0)
    measurements, labels = measurements.astype(jnp.result_type(float)), labels.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    return [(measurements[part], labels[part]) for part in np.split(order, [TRAINING])]


@meta_loss.example_args
def _():
    return initial_eta(), initial_theta(jax.random.key(0)), *read_wine()


def train(steps: int = 26, seed: int = 0, hypergradient=reverse_hypergradient) -> list[float]:
    """Tune the hyperparameters with Adam; returns the meta-loss at every step."""
    eta, theta, data = initial_eta(), initial_theta(jax.random.key(seed)), read_wine()
    optimiser = optax.adam(META_LEARNING_RATE)
    state = optimiser.init(eta)

    @jax.jit
    def meta_step(eta, state):
        value, gradient = hypergradient(eta, theta, *data)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(eta, updates), state, value

    losses = []
    for step in range(steps):
        rate, momentum, decay = hyperparameters(eta)
        eta, state, value = meta_step(eta, state)
        losses.append(float(value))
        if step % 5 == 0:
            print(
                f"step {step:2}  meta-loss {value:.3f}  rate {rate:.4f}  "
                f"momentum {momentum:.2f}  decay {decay:.4f}"
            )
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"meta-loss: first {losses[0]:.3f}, last {losses[-1]:.3f}")
