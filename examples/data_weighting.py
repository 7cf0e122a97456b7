"""Data weighting: learn which training examples to trust, by differentiating through Adam.

A weighting network (eta) looks at the bytes of each example in a training batch and decides what
share of the gradient it gets. With these weights a byte-level, decoder-only transformer (theta),
untrained at first, takes four Adam steps. The meta-loss is its loss on a clean validation batch
afterwards; its gradient in eta, which holds Adam's learning rate too, goes through all the steps.

The text is the documentation that comes with Python (`pydoc_data.topics`). Three examples out of
four in a training batch are corrupted: their bytes are random. Nobody tells the weighting network
which; it has to find out from what helps the validation loss.

Papers: Shu et al., "Meta-Weight-Net" (NeurIPS 2019, arXiv 1902.07379), for the two nested
problems; Calian et al., "DataRater" (2025, arXiv 2505.17895), for weights from an example's
content; Kemaev et al., "MixFlow-MG" (ICML 2025, arXiv 2505.00793), for what such a gradient costs.

Expect: the meta-loss falls from about 4.4 to 3.5 nats per byte (means of five steps) in the 20 meta
steps of `train()`; 10 suffice to see it fall, to 3.8. The clean example's weight rises from a
quarter to 1. With equal weights the best learning rate gives 4.1. One meta-gradient in plain JAX
takes 1.0 GB and 1 to 2.5 s on two cores, so the whole takes about a minute.
"""

from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixflow

VOCABULARY = 256
LAYERS = 4
WIDTH = 64
HEADS = 4
LENGTH = 256
BATCH = 4
CORRUPTED = 3
INNER_STEPS = 4
INNER_LEARNING_RATE = 0.004
META_LEARNING_RATE = 0.1
FEATURES = 32


def dense(key, inputs, outputs):
    return jax.random.normal(key, (inputs, outputs)) * inputs**-0.5


def initial_layer(key):
    keys = jax.random.split(key, 4)
    return {
        "attention_norm": jnp.ones(WIDTH),
        "query_key_value": dense(keys[0], WIDTH, 3 * WIDTH),
        "attention_output": dense(keys[1], WIDTH, WIDTH),
        "mlp_norm": jnp.ones(WIDTH),
        "mlp_input": dense(keys[2], WIDTH, 4 * WIDTH),
        "mlp_output": dense(keys[3], 4 * WIDTH, WIDTH),
    }


def initial_theta(key):
    """The transformer's weights."""
    embedding_key, position_key, output_key, *layer_keys = jax.random.split(key, 3 + LAYERS)
    return {
        "embedding": 0.02 * jax.random.normal(embedding_key, (VOCABULARY, WIDTH)),
        "positions": 0.02 * jax.random.normal(position_key, (LENGTH, WIDTH)),
        "layers": [initial_layer(layer_key) for layer_key in layer_keys],
        "final_norm": jnp.ones(WIDTH),
        "output": 0.1 * dense(output_key, WIDTH, VOCABULARY),
    }


def initial_eta(key):
    """The weighting network, with nearly equal weights at first, and Adam's log learning rate."""
    byte_key, hidden_key, score_key = jax.random.split(key, 3)
    return {
        "byte_features": jax.random.normal(byte_key, (VOCABULARY, FEATURES)),
        "hidden": dense(hidden_key, FEATURES, FEATURES),
        "bias": jnp.zeros(FEATURES),
        "score": 0.1 * jax.random.normal(score_key, (FEATURES,)),
        "log_learning_rate": jnp.asarray(np.log(INNER_LEARNING_RATE)),
    }


def normalise(scale, x):
    return scale * jax.nn.standardize(x, axis=-1, epsilon=1e-5)


def attention(layer, x):
    batch, length, width = x.shape
    heads = (x @ layer["query_key_value"]).reshape(batch, length, 3, HEADS, width // HEADS)
    query, key, value = jnp.moveaxis(heads, 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (width // HEADS) ** -0.5
    causal = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return mixed.reshape(batch, length, width) @ layer["attention_output"]


def mlp(layer, x):
    return jax.nn.gelu(x @ layer["mlp_input"]) @ layer["mlp_output"]


def transformer(theta, tokens):
    """Logits of the next byte at every position."""
    x = theta["embedding"][tokens] + theta["positions"]
    for layer in theta["layers"]:
        x = x + attention(layer, normalise(layer["attention_norm"], x))
        x = x + mlp(layer, normalise(layer["mlp_norm"], x))
    return normalise(theta["final_norm"], x) @ theta["output"]


def example_losses(theta, examples):
    """Mean next-byte loss of each example in the batch."""
    logits = transformer(theta, examples[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples[:, 1:])
    return losses.mean(axis=1)


def example_weights(eta, examples):
    """Share of each example in the batch's gradient; the shares add up to one."""
    bag_of_bytes = eta["byte_features"][examples].mean(axis=1)
    hidden = jnp.tanh(bag_of_bytes @ eta["hidden"] + eta["bias"])
    return jax.nn.softmax(hidden @ eta["score"])


def inner_loss(theta, eta, examples):
    return example_weights(eta, examples) @ example_losses(theta, examples)


@mixflow.compile
def meta_loss(eta, theta, batches, validation):
    """Loss on the clean batch after one Adam step on each of the weighted training batches."""
    # eps_root keeps the derivative of Adam's square root finite where a gradient is zero.
    adam = optax.adam(jnp.exp(eta["log_learning_rate"]), eps_root=1e-8)

    def adam_step(carry, examples):
        theta, state = carry
        gradient = jax.grad(inner_loss)(theta, eta, examples)
        updates, state = adam.update(gradient, state)
        return (optax.apply_updates(theta, updates), state), None

    (theta, _), _ = jax.lax.scan(adam_step, (theta, adam.init(theta)), batches)
    return example_losses(theta, validation).mean()


def read_text():
    """Training bytes, and for validation the bytes of every tenth topic."""
    texts = [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in topics.values()]
    training = [text for number, text in enumerate(texts) if number % 10]
    return np.concatenate(training), np.concatenate(texts[::10])


def sample_examples(rng, text, shape):
    starts = rng.integers(len(text) - LENGTH, size=shape)
    return text[starts[..., None] + np.arange(LENGTH + 1)]


def sample_meta_batch(rng, training_text, validation_text):
    """Training batches, the first examples of each corrupted, and a clean validation batch."""
    batches = sample_examples(rng, training_text, (INNER_STEPS, BATCH))
    # The weighting network treats all places in a batch alike, so it cannot tell by the place.
    corrupted = batches[:, :CORRUPTED]
    corrupted[:] = rng.integers(VOCABULARY, size=corrupted.shape)
    return batches, sample_examples(rng, validation_text, (BATCH,))


@meta_loss.example_args
def _():
    eta_key, theta_key = jax.random.split(jax.random.key(0))
    batches, validation = sample_meta_batch(np.random.default_rng(0), *read_text())
    return initial_eta(eta_key), initial_theta(theta_key), batches, validation


def train(steps: int = 20, seed: int = 0) -> list[float]:
    """Meta-train eta with Adam; returns the meta-loss at every step."""
    eta_key, theta_key = jax.random.split(jax.random.key(seed))
    eta, theta = initial_eta(eta_key), initial_theta(theta_key)
    optimiser = optax.adam(META_LEARNING_RATE)
    state = optimiser.init(eta)

    @jax.jit
    def meta_step(eta, state, theta, batches, validation):
        loss, gradient = jax.value_and_grad(meta_loss)(eta, theta, batches, validation)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(eta, updates), state, loss

    rng, texts = np.random.default_rng(seed), read_text()
    losses = []
    for step in range(steps):
        batches, validation = sample_meta_batch(rng, *texts)
        clean_share = example_weights(eta, batches[0])[CORRUPTED:].sum()
        eta, state, loss = meta_step(eta, state, theta, batches, validation)
        losses.append(float(loss))
        print(f"step {step:2}  meta-loss {loss:.3f}  weight on clean examples {clean_share:.3f}")
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"meta-loss: first {np.mean(losses[:5]):.3f}, last {np.mean(losses[-5:]):.3f}")
