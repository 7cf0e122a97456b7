"""MAML: learn initial weights from which a few gradient steps learn a new task.

A task shows five of the ten handwritten digits under new names: which digits, and which name each
gets, is drawn at random. From five images of each class (the support set) a small convolutional
network takes a few steps of plain gradient descent; its loss on other images of the same classes
(the query set) is the task's loss. eta is the initial weights of the network, theta_0 itself, and
the meta-loss is the mean over a batch of tasks. Its gradient goes back through the inner steps,
with the second derivatives that "first-order MAML" leaves out.

As the names change from task to task, no fixed classifier does better than chance, log 5 = 1.61.

Paper: Finn et al., "Model-Agnostic Meta-Learning" (ICML 2017, arXiv 1703.03400).

Expect: the meta-loss falls from about 0.9 to 0.12 (means of five steps) in the 150 meta steps of
`train()`, in 10 to 15 s on two cores; 30 steps suffice to see it fall, to 0.5.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import mixflow

WAYS = 5
SHOTS = 5
QUERIES = 10
TASKS = 8
CHANNELS = 16
INNER_STEPS = 3
INNER_LEARNING_RATE = 0.4
META_LEARNING_RATE = 0.005


def initial_weights(key):
    """Two strided convolutions, 8x8 to 4x4 to 2x2 pixels, and a linear classifier."""
    keys = jax.random.split(key, 3)
    he_normal = jax.nn.initializers.he_normal()
    return {
        "convolution_1": he_normal(keys[0], (3, 3, 1, CHANNELS)),
        "bias_1": jnp.zeros(CHANNELS),
        "convolution_2": he_normal(keys[1], (3, 3, CHANNELS, CHANNELS)),
        "bias_2": jnp.zeros(CHANNELS),
        "classifier": he_normal(keys[2], (4 * CHANNELS, WAYS)),
        "classifier_bias": jnp.zeros(WAYS),
    }


def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def network(theta, images):
    """Logits of the classes."""
    x = jax.nn.relu(convolve(images[..., None], theta["convolution_1"]) + theta["bias_1"])
    x = jax.nn.relu(convolve(x, theta["convolution_2"]) + theta["bias_2"])
    return x.reshape(len(x), -1) @ theta["classifier"] + theta["classifier_bias"]


def loss(theta, images, labels):
    logits = network(theta, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def adapt(theta, images, labels):
    """The weights after a few steps of gradient descent on the support set."""

    def descend(theta, _):
        gradient = jax.grad(loss)(theta, images, labels)
        theta = jax.tree.map(lambda p, g: p - INNER_LEARNING_RATE * g, theta, gradient)
        return theta, None

    theta, _ = jax.lax.scan(descend, theta, length=INNER_STEPS)
    return theta


def task_loss(eta, support, query):
    return loss(adapt(eta, *support), *query)


@mixflow.compile
def meta_loss(eta, support, query):
    """Mean query loss over the tasks, after adaptation to each from the same weights eta."""
    return jax.vmap(task_loss, in_axes=(None, 0, 0))(eta, support, query).mean()


def read_digits():
    """The images of each digit."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 8 - 1).reshape(-1, 8, 8).astype(jnp.result_type(float))
    return [images[labels == digit] for digit in range(10)]


def sample_task(rng, digits):
    """Images and labels of the support set and the query set."""
    classes = rng.choice(10, WAYS, replace=False)
    images = np.stack([rng.permutation(digits[c])[: SHOTS + QUERIES] for c in classes])
    labels = np.broadcast_to(np.arange(WAYS, dtype=np.int32)[:, None], images.shape[:2])
    support = images[:, :SHOTS].reshape(-1, 8, 8), labels[:, :SHOTS].reshape(-1)
    query = images[:, SHOTS:].reshape(-1, 8, 8), labels[:, SHOTS:].reshape(-1)
    return support, query


def sample_meta_batch(rng, digits):
    tasks = [sample_task(rng, digits) for _ in range(TASKS)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *tasks)


@meta_loss.example_args
def _():
    support, query = sample_meta_batch(np.random.default_rng(0), read_digits())
    return initial_weights(jax.random.key(0)), support, query


def train(steps: int = 150, seed: int = 0) -> list[float]:
    """Meta-train the initial weights with Adam; returns the meta-loss at every step."""
    eta = initial_weights(jax.random.key(seed))
    optimiser = optax.adam(META_LEARNING_RATE)
    state = optimiser.init(eta)

    @jax.jit
    def meta_step(eta, state, support, query):
        value, gradient = jax.value_and_grad(meta_loss)(eta, support, query)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(eta, updates), state, value

    rng, digits = np.random.default_rng(seed), read_digits()
    losses = []
    for step in range(steps):
        eta, state, value = meta_step(eta, state, *sample_meta_batch(rng, digits))
        losses.append(float(value))
        if step % 10 == 0:
            print(f"step {step:3}  meta-loss {value:.3f}")
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"meta-loss: first {np.mean(losses[:5]):.3f}, last {np.mean(losses[-5:]):.3f}")
