"""Pre-training weights: which pre-training tasks help the network that is fine-tuned afterwards?

A network (theta) is pre-trained on several tasks at once, each a question about the image of a
handwritten digit with an output of its own: four ask about the digit (is it even? is it five or
more? ...), four have answers drawn at random, which can't be learned but by heart. Then it gets a
new output layer and is fine-tuned on a few images labelled with their digit. eta holds one weight
for each pre-training task, as a logit; the meta-loss is the validation loss after fine-tuning. Its
gradient goes back through both loops: through fine-tuning into the pre-trained weights, and from
there through pre-training.

Nobody says which tasks are worth while; their weights part ways by what helps the fine-tuned
network.

Paper: Raghu et al., "Meta-Learning to Improve Pre-Training" (NeurIPS 2021, arXiv 2111.01754). It
uses implicit differentiation for the first loop; here both are unrolled.

Expect: the meta-loss falls from 0.93 to 0.63 (means of five steps) in the 30 meta steps of
`train()`; after 20 the mean weight of the tasks about the digit is 0.29, and that of the random
ones 0.09.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import mixflow

PIXELS = 64
HIDDEN = 64
CLASSES = 10
QUESTIONS = ({0, 2, 4, 6, 8}, {5, 6, 7, 8, 9}, {0, 6, 8, 9}, {1, 4, 7})
RANDOM_QUESTIONS = 4
BATCH = 128
PRETRAINING_STEPS = 40
FINETUNING_STEPS = 10
FINETUNING_IMAGES = 50
VALIDATION = 500
LEARNING_RATE = 0.1
MOMENTUM = 0.9
TASK_WEIGHT_LOGIT = -2.0
META_LEARNING_RATE = 0.1


def initial_theta(key):
    """Two hidden layers, the output layer of pre-training, and that of fine-tuning."""
    keys = jax.random.split(key, 4)
    glorot_normal = jax.nn.initializers.glorot_normal()
    shapes = {
        "hidden_1": (PIXELS, HIDDEN),
        "hidden_2": (HIDDEN, HIDDEN),
        "answers": (HIDDEN, len(QUESTIONS) + RANDOM_QUESTIONS),
        "classes": (HIDDEN, CLASSES),
    }
    return {
        name: {"matrix": glorot_normal(key, shape), "bias": jnp.zeros(shape[1])}
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def initial_eta():
    """The same small weight for every task."""
    return jnp.full(len(QUESTIONS) + RANDOM_QUESTIONS, TASK_WEIGHT_LOGIT)


def dense(layer, x):
    return x @ layer["matrix"] + layer["bias"]


def features(theta, images):
    return jnp.tanh(dense(theta["hidden_2"], jnp.tanh(dense(theta["hidden_1"], images))))


def pretraining_loss(theta, task_weights, images, answers):
    """The weighted sum of the tasks' losses."""
    logits = dense(theta["answers"], features(theta, images))
    task_losses = optax.sigmoid_binary_cross_entropy(logits, answers).mean(axis=0)
    return task_weights @ task_losses


def classification_loss(theta, images, labels):
    logits = dense(theta["classes"], features(theta, images))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def minimise(loss, theta, batches):
    """The weights after one step of gradient descent with momentum on each batch."""
    optimiser = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)

    def step(carry, batch):
        theta, state = carry
        updates, state = optimiser.update(jax.grad(loss)(theta, *batch), state)
        return (optax.apply_updates(theta, updates), state), None

    (theta, _), _ = jax.lax.scan(step, (theta, optimiser.init(theta)), batches)
    return theta


@mixflow.compile
def meta_loss(eta, theta, pretraining, finetuning, validation):
    """Validation loss after pre-training with these task weights, and fine-tuning."""
    task_weights = jax.nn.sigmoid(eta)

    def weighted_loss(theta, images, answers):
        return pretraining_loss(theta, task_weights, images, answers)

    theta = minimise(weighted_loss, theta, pretraining)
    theta = minimise(classification_loss, theta, finetuning)
    return classification_loss(theta, *validation)


def read_digits():
    """Images, labels, and the answers to the pre-training questions; half for validation."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    about_digits = [np.isin(labels, list(question)) for question in QUESTIONS]
    random = rng.integers(2, size=(RANDOM_QUESTIONS, len(labels)))
    float_type = jnp.result_type(float)
    answers = np.concatenate([about_digits, random]).T.astype(float_type)
    columns = (images / 8 - 1).astype(float_type), labels.astype(np.int32), answers
    order = np.split(rng.permutation(len(labels)), [len(labels) // 2])
    return [[column[part] for column in columns] for part in order]


def sample_meta_batch(rng, training, held_out):
    """Batches for pre-training, the few images of fine-tuning at every step, and validation."""
    images, labels, answers = training
    batches = rng.integers(len(images), size=(PRETRAINING_STEPS, BATCH))
    few = rng.choice(len(images), size=FINETUNING_IMAGES, replace=False)
    few = np.broadcast_to(few, (FINETUNING_STEPS, FINETUNING_IMAGES))
    chosen = rng.choice(len(held_out[0]), size=VALIDATION, replace=False)
    validation = held_out[0][chosen], held_out[1][chosen]
    return (images[batches], answers[batches]), (images[few], labels[few]), validation


@meta_loss.example_args
def _():
    batches = sample_meta_batch(np.random.default_rng(0), *read_digits())
    return initial_eta(), initial_theta(jax.random.key(0)), *batches


def train(steps: int = 30, seed: int = 0) -> list[float]:
    """Learn the task weights with Adam; returns the meta-loss at every step."""
    eta = initial_eta()
    optimiser = optax.adam(META_LEARNING_RATE)
    state = optimiser.init(eta)

    @jax.jit
    def meta_step(eta, state, key, *batches):
        theta = initial_theta(key)
        value, gradient = jax.value_and_grad(meta_loss)(eta, theta, *batches)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(eta, updates), state, value

    rng, data = np.random.default_rng(seed), read_digits()
    losses = []
    for step, key in enumerate(jax.random.split(jax.random.key(seed), steps)):
        eta, state, value = meta_step(eta, state, key, *sample_meta_batch(rng, *data))
        losses.append(float(value))
        if step % 10 == 0:
            weights = jax.nn.sigmoid(eta)
            useful, useless = weights[: len(QUESTIONS)].mean(), weights[len(QUESTIONS) :].mean()
            print(
                f"step {step:2}  meta-loss {value:.3f}  mean weight of tasks about the digit "
                f"{useful:.2f}, of random ones {useless:.2f}"
            )
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"meta-loss: first {np.mean(losses[:5]):.3f}, last {np.mean(losses[-5:]):.3f}")
