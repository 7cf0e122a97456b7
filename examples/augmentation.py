"""Augmentation: learn how to transform training images so that a classifier generalises.

A classifier of handwritten digits (theta) is trained from scratch on images that all stand upright.
The digits that it will be judged on were turned, each by some angle up to 60 degrees. eta is an
augmentation network: from random noise it makes an affine map, and every training image is warped
by one before the classifier sees it. The meta-loss is the loss on clean validation images, turned
ones that nobody has augmented, after the training; its gradient reaches eta through every training
step and through the warped pixels. Nobody tells the network about angles. It finds them.

Paper: Mounsaveng et al., "Learning Data Augmentation with Online Bilevel Optimization for Image
Classification" (WACV 2021, arXiv 2006.14699), with affine maps from a network too.

Expect: the meta-loss falls from 2.1 to 0.96 (means of five steps) in the 40 meta steps of
`train()`, and the angles by which images are turned get a standard deviation of 25 to 30 degrees.
Angles drawn evenly up to 60 degrees have 35.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits

import mixflow

SIDE = 8
HIDDEN = 128
BATCH = 64
VALIDATION = 256
INNER_STEPS = 30
INNER_LEARNING_RATE = 0.1
MOMENTUM = 0.9
LARGEST_ANGLE = 60
NOISE = 4
AUGMENTER_HIDDEN = 32
META_LEARNING_RATE = 0.01


def initial_theta(key):
    hidden_key, output_key = jax.random.split(key)
    he_normal = jax.nn.initializers.he_normal()
    return {
        "hidden": he_normal(hidden_key, (SIDE**2, HIDDEN)),
        "hidden_bias": jnp.zeros(HIDDEN),
        "output": he_normal(output_key, (HIDDEN, 10)),
        "output_bias": jnp.zeros(10),
    }


def initial_eta(key):
    """An augmentation network whose maps are close to the identity."""
    hidden_key, output_key = jax.random.split(key)
    return {
        "hidden": jax.random.normal(hidden_key, (NOISE, AUGMENTER_HIDDEN)),
        "output": 0.01 * jax.random.normal(output_key, (AUGMENTER_HIDDEN, 6)),
    }


def affine_map(eta, noise):
    """A matrix and a shift."""
    numbers = jnp.tanh(noise @ eta["hidden"]) @ eta["output"]
    return jnp.eye(2) + numbers[:4].reshape(2, 2), numbers[4:]


def warp(image, matrix, shift):
    """The image seen through an affine map about its centre, with bilinear interpolation."""
    middle = (SIDE - 1) / 2
    places = jnp.stack(jnp.meshgrid(*[jnp.arange(SIDE) - middle] * 2, indexing="ij"))
    sources = jnp.einsum("ij,jyx->iyx", matrix, places) + shift[:, None, None] + middle
    return map_coordinates(image, sources, order=1, mode="constant", cval=-1)


def augment(eta, images, noise):
    return jax.vmap(lambda image, noise: warp(image, *affine_map(eta, noise)))(images, noise)


def loss(theta, images, labels):
    pixels = images.reshape(len(images), -1)
    hidden = jax.nn.relu(pixels @ theta["hidden"] + theta["hidden_bias"])
    logits = hidden @ theta["output"] + theta["output_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def inner_loss(theta, eta, images, labels, noise):
    return loss(theta, augment(eta, images, noise), labels)


@mixflow.compile
def meta_loss(eta, theta, batches, validation):
    """Loss on clean images after training on one augmented batch after the other."""
    optimiser = optax.sgd(INNER_LEARNING_RATE, MOMENTUM)

    def step(carry, batch):
        theta, state = carry
        gradient = jax.grad(inner_loss)(theta, eta, *batch)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(theta, updates), state), None

    (theta, _), _ = jax.lax.scan(step, (theta, optimiser.init(theta)), batches)
    return loss(theta, *validation)


def turn(image, degrees):
    angle = jnp.radians(degrees)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return warp(image, jnp.array([[cosine, -sine], [sine, cosine]]), jnp.zeros(2))


def read_digits():
    """Upright images with labels for training, and turned ones for validation."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 8 - 1).reshape(-1, SIDE, SIDE).astype(jnp.result_type(float))
    labels = labels.astype(np.int32)
    rng = np.random.default_rng(0)
    training, validation = np.array_split(rng.permutation(len(images)), 2)
    degrees = rng.uniform(-LARGEST_ANGLE, LARGEST_ANGLE, len(validation))
    turned = np.asarray(jax.vmap(turn)(images[validation], degrees))
    return (images[training], labels[training]), (turned, labels[validation])


def sample(rng, data, shape):
    images, labels = data
    chosen = rng.integers(len(images), size=shape)
    return images[chosen], labels[chosen]


def sample_meta_batch(rng, training, validation):
    images, labels = sample(rng, training, (INNER_STEPS, BATCH))
    noise = rng.normal(size=(INNER_STEPS, BATCH, NOISE)).astype(images.dtype)
    return (images, labels, noise), sample(rng, validation, VALIDATION)


@meta_loss.example_args
def _():
    eta_key, theta_key = jax.random.split(jax.random.key(0))
    meta_batch = sample_meta_batch(np.random.default_rng(0), *read_digits())
    return initial_eta(eta_key), initial_theta(theta_key), *meta_batch


def spread_of_angles(eta, noise):
    """Standard deviation, in degrees, of the angles by which eta turns images."""
    matrices, _ = jax.vmap(affine_map, in_axes=(None, 0))(eta, noise)
    sines = matrices[:, 1, 0] - matrices[:, 0, 1]
    cosines = matrices[:, 0, 0] + matrices[:, 1, 1]
    return jnp.degrees(jnp.arctan2(sines, cosines).std())


def train(steps: int = 40, seed: int = 0) -> list[float]:
    """Meta-train the augmentation with Adam; returns the meta-loss at every step."""
    eta_key, key = jax.random.split(jax.random.key(seed))
    eta = initial_eta(eta_key)
    optimiser = optax.adam(META_LEARNING_RATE)
    state = optimiser.init(eta)

    @jax.jit
    def meta_step(eta, state, key, batches, validation):
        theta = initial_theta(key)
        value, gradient = jax.value_and_grad(meta_loss)(eta, theta, batches, validation)
        updates, state = optimiser.update(gradient, state)
        eta = optax.apply_updates(eta, updates)
        return eta, state, value, spread_of_angles(eta, batches[2][0])

    rng, data = np.random.default_rng(seed), read_digits()
    losses = []
    for step, step_key in enumerate(jax.random.split(key, steps)):
        eta, state, value, spread = meta_step(eta, state, step_key, *sample_meta_batch(rng, *data))
        losses.append(float(value))
        if step % 10 == 0:
            print(f"step {step:3}  meta-loss {value:.3f}  spread of angles {spread:.0f} degrees")
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"meta-loss: first {np.mean(losses[:5]):.3f}, last {np.mean(losses[-5:]):.3f}")
