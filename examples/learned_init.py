"""Learned initialisation: start a coordinate network where a few steps give it an image.

A coordinate network maps the place of a pixel to its colour. Here a sine network (SIREN) has to
represent a small crop of a photograph after a few steps of plain gradient descent on all its
pixels. eta is the initial weights of the network, theta_0 itself; a task is one crop, and the
meta-loss is the mean error over a batch of crops after the inner steps. From random weights so few
steps give a blur; from learned ones, a picture.

The crops come from two photographs that ship with scikit-learn. Those of the right quarter of each
are never trained on, and the figure printed now and then is the quality of these, as PSNR in dB.

Papers: Tancik et al., "Learned Initializations for Optimizing Coordinate-Based Neural
Representations" (CVPR 2021, arXiv 2012.02189); Sitzmann et al., "Implicit Neural Representations
with Periodic Activation Functions" (NeurIPS 2020, arXiv 2006.09661), for the network.

Expect: the meta-loss falls from 0.25 to 0.045 (means of five steps) in the 41 meta steps of
`train()`, and the unseen crops go from 9 to 26 dB, most of it in the first 20.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_sample_image

import mixflow

SIDE = 32
TASKS = 3
HIDDEN = 64
HIDDEN_LAYERS = 3
FREQUENCY = 30.0
INNER_STEPS = 3
INNER_LEARNING_RATE = 0.02
META_LEARNING_RATE = 3e-4
HELD_OUT = 16


def initial_layer(key, inputs, outputs, bound):
    matrix = jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound)
    return {"matrix": matrix, "bias": jnp.zeros(outputs)}


def initial_weights(key):
    """Sine layers, drawn as in the SIREN paper, and a linear layer for the three colours."""
    widths = (2, *[HIDDEN] * HIDDEN_LAYERS, 3)
    keys = jax.random.split(key, len(widths) - 1)
    bounds = [1 / 2] + [(6 / HIDDEN) ** 0.5 / FREQUENCY] * HIDDEN_LAYERS
    shapes = itertools.pairwise(widths)
    return [
        initial_layer(key, *shape, bound)
        for key, shape, bound in zip(keys, shapes, bounds, strict=True)
    ]


def network(theta, places):
    """Colours at these places."""
    *sine_layers, output_layer = theta
    x = places
    for layer in sine_layers:
        x = jnp.sin(FREQUENCY * (x @ layer["matrix"] + layer["bias"]))
    return x @ output_layer["matrix"] + output_layer["bias"]


def loss(theta, places, crop):
    return jnp.mean((network(theta, places) - crop) ** 2)


def fit(theta, places, crop):
    """The weights after a few steps of gradient descent on the pixels of the crop."""

    def descend(theta, _):
        gradient = jax.grad(loss)(theta, places, crop)
        theta = jax.tree.map(lambda p, g: p - INNER_LEARNING_RATE * g, theta, gradient)
        return theta, None

    theta, _ = jax.lax.scan(descend, theta, length=INNER_STEPS)
    return theta


@mixflow.compile
def meta_loss(eta, places, crops):
    """Mean error over the crops, each fitted by a few steps from the same weights eta."""

    def crop_loss(crop):
        return loss(fit(eta, places, crop), places, crop)

    return jax.vmap(crop_loss)(crops).mean()


def read_photographs():
    """Each photograph's part for training and its held-out right quarter, colours from -1 to 1."""
    photographs = [load_sample_image(name) / 127.5 - 1 for name in ("china.jpg", "flower.jpg")]
    photographs = [photograph.astype(jnp.result_type(float)) for photograph in photographs]
    cuts = [3 * photograph.shape[1] // 4 for photograph in photographs]
    pairs = zip(photographs, cuts, strict=True)
    training, held_out = zip(*[np.split(image, [cut], axis=1) for image, cut in pairs], strict=True)
    return training, held_out


def pixel_places():
    """The places of a crop's pixels, from -1 to 1."""
    axis = np.linspace(-1, 1, SIDE, dtype=jnp.result_type(float))
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def sample_crop(rng, photographs):
    image = photographs[rng.integers(len(photographs))]
    row, column = (rng.integers(length - SIDE) for length in image.shape[:2])
    return image[row : row + SIDE, column : column + SIDE].reshape(-1, 3)


def sample_crops(rng, photographs, count):
    return np.stack([sample_crop(rng, photographs) for _ in range(count)])


@meta_loss.example_args
def _():
    training, _ = read_photographs()
    crops = sample_crops(np.random.default_rng(0), training, TASKS)
    return initial_weights(jax.random.key(0)), pixel_places(), crops


def quality(mean_squared_error):
    """Peak signal-to-noise ratio in dB; the colours span a range of 2."""
    return 10 * np.log10(4 / mean_squared_error)


def train(steps: int = 41, seed: int = 0) -> list[float]:
    """Meta-train the initial weights with Adam; returns the meta-loss at every step."""
    eta, places = initial_weights(jax.random.key(seed)), pixel_places()
    optimiser = optax.adam(META_LEARNING_RATE)
    state = optimiser.init(eta)

    @jax.jit
    def meta_step(eta, state, crops):
        value, gradient = jax.value_and_grad(meta_loss)(eta, places, crops)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(eta, updates), state, value

    rng, (training, held_out) = np.random.default_rng(seed), read_photographs()
    unseen = sample_crops(rng, held_out, HELD_OUT)
    unseen_loss = jax.jit(meta_loss)
    losses = []
    for step in range(steps):
        if step % 20 == 0:
            psnr = quality(unseen_loss(eta, places, unseen))
            print(f"step {step:3}  unseen crops {psnr:.1f} dB")
        eta, state, value = meta_step(eta, state, sample_crops(rng, training, TASKS))
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"meta-loss: first {np.mean(losses[:5]):.3f}, last {np.mean(losses[-5:]):.3f}")
