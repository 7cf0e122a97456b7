"""Meta-gradient reinforcement learning: learn how an agent learns from its rewards.

The world is a grid with one good thing (reward 1) and one bad thing (reward -1); either goes
elsewhere when the agent steps on it. theta is the agent, an actor-critic network. It starts from
scratch and lives for sixteen updates, each with Adam and on a fresh rollout of its own actions.

eta says what these updates do: the discount, the trace decay (lambda), the weight of the entropy,
and a learned loss, a small network that is added to the actor-critic's. It sees the agent's age, so
it may ask for something else early in life than late. The meta-loss is minus the reward per step of
the agents at the end of their lives; its gradient is the policy gradient on a last rollout, through
all the updates. The rollouts themselves are not differentiated: actions are drawn. All chance is
drawn beforehand and is an argument, so that the meta-loss is a function like any other.

With BOOTSTRAP_STEPS the agents go on learning for so many updates, the last of them with the usual
loss, and the meta-loss pulls the policies towards these later ones ("bootstrapped").

Papers: Xu et al., "Meta-Gradient Reinforcement Learning" (NeurIPS 2018, arXiv 1805.09801), for
discount and lambda; Bonnet et al., "One Step at a Time" (2021, arXiv 2111.00206), for several inner
steps; Flennerhag et al., "Bootstrapped Meta-Learning" (ICLR 2022, arXiv 2109.04504); Jackson et
al., "Discovering Temporally-Aware Reinforcement Learning Algorithms" (ICLR 2024, arXiv 2402.05828),
for the age.

Expect: the agents' reward per step rises from 0.09 to 0.13 (means of five steps) in the 40 meta
steps of `train()`, and the discount falls from 0.9 to about 0.82.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixflow

SIDE = 3
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
HIDDEN = 64
AGENTS = 4
WORLDS = 64
ROLLOUT = 16
INNER_STEPS = 16
INNER_LEARNING_RATE = 0.01
BOOTSTRAP_STEPS = 0
DISCOUNT = 0.9
TRACE_DECAY = 0.9
ENTROPY_WEIGHT = 0.01
LOSS_HIDDEN = 16
META_LEARNING_RATE = 0.03


class World(NamedTuple):
    """The cells, by number, in which the agent and the two things are."""

    agent: jax.Array
    good: jax.Array
    bad: jax.Array


class Chance(NamedTuple):
    """What is drawn for one move: a number for each action, and new cells for the two things."""

    gumbel: np.ndarray
    cells: np.ndarray


class Life(NamedTuple):
    """An agent that learns: its network, Adam's state, its worlds, and its age in updates."""

    theta: optax.Params
    adam: optax.OptState
    worlds: World
    age: jax.Array


class Rollout(NamedTuple):
    """What the agent saw, one observation more than actions, did, and got; time comes first."""

    observations: jax.Array
    actions: jax.Array
    rewards: jax.Array


def observe(world):
    return jax.nn.one_hot(jnp.stack(world, axis=-1), SIDE**2).reshape(*world.agent.shape, -1)


def move(world, action, cells):
    """The world after one move, and the reward."""
    moves = jnp.asarray(MOVES, world.agent.dtype)
    place = jnp.stack(jnp.divmod(world.agent, SIDE)) + moves[action]
    row, column = jnp.clip(place, 0, SIDE - 1)
    agent = row * SIDE + column
    found_good, found_bad = agent == world.good, agent == world.bad
    good = jnp.where(found_good, cells[0], world.good)
    bad = jnp.where(found_bad, cells[1], world.bad)
    return World(agent, good, bad), 1.0 * found_good - 1.0 * found_bad


def initial_theta(key):
    hidden_key, output_key = jax.random.split(key)
    policy_and_value = jax.random.normal(output_key, (HIDDEN, len(MOVES) + 1))
    return {
        "hidden": jax.random.normal(hidden_key, (3 * SIDE**2, HIDDEN)),
        "output": 0.1 * HIDDEN**-0.5 * policy_and_value,
    }


def actor_critic(theta, observations):
    """Log-probabilities of the moves, and the value."""
    outputs = jnp.tanh(observations @ theta["hidden"]) @ theta["output"]
    return jax.nn.log_softmax(outputs[..., 1:]), outputs[..., 0]


def play(theta, worlds, chances):
    """The worlds after a rollout in each, and the rollout."""
    theta = jax.lax.stop_gradient(theta)

    def step(worlds, chance):
        observations = observe(worlds)
        log_probabilities, _ = actor_critic(theta, observations)
        actions = jnp.argmax(log_probabilities + chance.gumbel, axis=-1)
        worlds, rewards = jax.vmap(move)(worlds, actions, chance.cells)
        return worlds, (observations, actions, rewards)

    worlds, (observations, *rest) = jax.lax.scan(step, worlds, chances)
    observations = jnp.concatenate([observations, observe(worlds)[None]])
    return worlds, Rollout(observations, *rest)


def advantages(values, rewards, discount, trace_decay):
    """Generalised advantage estimates; `values` has one more entry than `rewards`."""
    errors = rewards + discount * values[1:] - values[:-1]

    def add(later, error):
        advantage = error + discount * trace_decay * later
        return advantage, advantage

    return jax.lax.scan(add, jnp.zeros_like(errors[0]), errors, reverse=True)[1]


def initial_hyperparameters():
    return {
        "discount_logit": jnp.asarray(np.log(DISCOUNT / (1 - DISCOUNT))),
        "trace_decay_logit": jnp.asarray(np.log(TRACE_DECAY / (1 - TRACE_DECAY))),
        "log_entropy_weight": jnp.asarray(np.log(ENTROPY_WEIGHT)),
    }


def initial_eta(key):
    """The usual actor-critic: the learned loss is near zero at first."""
    hidden_key, output_key = jax.random.split(key)
    return initial_hyperparameters() | {
        "loss_hidden": jax.random.normal(hidden_key, (4, LOSS_HIDDEN)),
        "loss_output": 0.01 * jax.random.normal(output_key, (LOSS_HIDDEN,)),
    }


def learned_loss(eta, log_chosen, values, advantage, age):
    age = jnp.broadcast_to(age / INNER_STEPS, values.shape)
    inputs = jnp.stack([log_chosen, values, advantage, age], axis=-1)
    return jnp.mean(jnp.tanh(inputs @ eta["loss_hidden"]) @ eta["loss_output"])


def inner_loss(theta, eta, rollout, age):
    log_probabilities, values = actor_critic(theta, rollout.observations)
    discount = jax.nn.sigmoid(eta["discount_logit"])
    trace_decay = jax.nn.sigmoid(eta["trace_decay_logit"])
    fixed_values = jax.lax.stop_gradient(values)
    advantage = advantages(fixed_values, rollout.rewards, discount, trace_decay)
    log_probabilities, values = log_probabilities[:-1], values[:-1]
    log_chosen = jnp.take_along_axis(log_probabilities, rollout.actions[..., None], -1)[..., 0]
    actor = -jnp.mean(advantage * log_chosen)
    critic = jnp.mean((fixed_values[:-1] + advantage - values) ** 2)
    entropy = -jnp.mean(jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1))
    learned = learned_loss(eta, log_chosen, values, advantage, age)
    return actor + critic - jnp.exp(eta["log_entropy_weight"]) * entropy + learned


# eps_root keeps the derivative of Adam's square root finite where a gradient is zero.
inner_optimiser = optax.adam(INNER_LEARNING_RATE, eps_root=1e-8)


def learn(eta, life, chances):
    """The agent after one more rollout and the update that eta makes of it."""
    worlds, rollout = play(life.theta, life.worlds, chances)
    gradient = jax.grad(inner_loss)(life.theta, eta, rollout, life.age)
    updates, adam = inner_optimiser.update(gradient, life.adam)
    return Life(optax.apply_updates(life.theta, updates), adam, worlds, life.age + 1)


def policy_gradient_loss(theta, rollout):
    """Minus the reward per step; its gradient is the policy gradient."""
    log_probabilities, values = actor_critic(theta, rollout.observations)
    fixed_values = jax.lax.stop_gradient(values)
    advantage = advantages(fixed_values, rollout.rewards, DISCOUNT, TRACE_DECAY)
    log_chosen = jnp.take_along_axis(log_probabilities[:-1], rollout.actions[..., None], -1)
    surrogate = -jnp.mean(advantage * log_chosen[..., 0])
    return surrogate - jax.lax.stop_gradient(surrogate) - rollout.rewards.mean()


def pick(chances, index):
    return jax.tree.map(lambda draws: draws[index], chances)


def learn_all(eta, life, chances):
    return jax.lax.scan(lambda life, chance: (learn(eta, life, chance), None), life, chances)[0]


def bootstrap_loss(eta, life, rollout, chances):
    """Divergence of the policy from its own future; minus the reward per step as its value."""
    future = learn_all(eta, life, pick(chances, slice(-1)))
    usual = eta | initial_hyperparameters() | {"loss_output": jnp.zeros(LOSS_HIDDEN)}
    future = learn(usual, future, pick(chances, -1))
    target, _ = actor_critic(jax.lax.stop_gradient(future.theta), rollout.observations)
    log_probabilities, _ = actor_critic(life.theta, rollout.observations)
    divergence = jnp.mean(jnp.sum(jnp.exp(target) * (target - log_probabilities), axis=-1))
    return divergence - jax.lax.stop_gradient(divergence) - rollout.rewards.mean()


def agent_loss(eta, theta, worlds, chances):
    """Minus the reward per step of one agent at the end of its life."""
    life = Life(theta, inner_optimiser.init(theta), worlds, jnp.asarray(0))
    life = learn_all(eta, life, pick(chances, slice(INNER_STEPS)))
    _, rollout = play(life.theta, life.worlds, pick(chances, INNER_STEPS))
    if BOOTSTRAP_STEPS:
        return bootstrap_loss(eta, life, rollout, pick(chances, slice(INNER_STEPS + 1, None)))
    return policy_gradient_loss(life.theta, rollout)


@mixflow.compile
def meta_loss(eta, theta, worlds, chances):
    """Minus the mean reward per step of the agents after a short life of learning by eta."""
    return jax.vmap(agent_loss, in_axes=(None, 0, 0, 0))(eta, theta, worlds, chances).mean()


def sample_lives(rng, key):
    """Networks and worlds of new agents, and all that chance will bring them."""
    theta = jax.vmap(initial_theta)(jax.random.split(key, AGENTS))
    worlds = World(*rng.integers(SIDE**2, size=(3, AGENTS, WORLDS), dtype=np.int32))
    shape = (AGENTS, INNER_STEPS + 1 + BOOTSTRAP_STEPS, ROLLOUT, WORLDS)
    gumbel = rng.gumbel(size=(*shape, len(MOVES))).astype(jnp.result_type(float))
    cells = rng.integers(SIDE**2, size=(*shape, 2), dtype=np.int32)
    return theta, worlds, Chance(gumbel, cells)


@meta_loss.example_args
def _():
    eta_key, key = jax.random.split(jax.random.key(0))
    return initial_eta(eta_key), *sample_lives(np.random.default_rng(0), key)


def train(steps: int = 40, seed: int = 0) -> list[float]:
    """Meta-train eta with Adam; returns the meta-loss at every step."""
    eta_key, key = jax.random.split(jax.random.key(seed))
    eta = initial_eta(eta_key)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(META_LEARNING_RATE))
    state = optimiser.init(eta)

    @jax.jit
    def meta_step(eta, state, *lives):
        loss, gradient = jax.value_and_grad(meta_loss)(eta, *lives)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(eta, updates), state, loss

    rng = np.random.default_rng(seed)
    losses = []
    for step, step_key in enumerate(jax.random.split(key, steps)):
        eta, state, loss = meta_step(eta, state, *sample_lives(rng, step_key))
        losses.append(float(loss))
        if step % 10 == 0:
            discount = jax.nn.sigmoid(eta["discount_logit"])
            print(f"step {step:3}  reward per step {-loss:.3f}  discount {discount:.3f}")
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"meta-loss: first {np.mean(losses[:5]):.3f}, last {np.mean(losses[-5:]):.3f}")
