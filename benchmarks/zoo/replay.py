"""Long training runs differentiated from the host: states are replayed, step by step, going back.

What mixflow is compared with on long loops. Each step is a call of a compiled function. Going back
needs the states in the reverse of the order in which they come about; they are the leaves of a
k-ary tree, of which only the path to the current leaf is held: about k log_k T states, each step
being run log_k T times. No derivative of a gradient is special to it: a step's pullback is
`jax.vjp`'s, reverse over reverse.

Source: Engstrom et al., "Optimizing ML Training with Metagradient Descent" (2025,
arXiv 2503.13751), section 2.3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.measure import total_bytes

Tree = Any

ARITY = 4
"""Of the tree: for T = 4096, six levels hold 19 states."""


@dataclass(frozen=True)
class Training:
    """A training run as the host's loop sees it.

    Arguments:
        length: the number of steps, T.
        state: what the first step starts from.
        step: from (η, state, place) to the next state.
        loss: from (η, state) to the meta-loss.
    """

    length: int
    state: Tree
    step: Callable[[Tree, Tree, Any], Tree]
    loss: Callable[[Tree, Tree], Any]


def _hyperparameters(names: dict[str, Any], args: tuple[Any, ...]) -> Training:
    _, theta, training, validation = args
    loss = names["loss"]

    def step(eta: Tree, state: Tree, place: Any) -> Tree:
        del place  # every step is on all of the data
        (theta, velocity), (rate, momentum, decay) = state, names["hyperparameters"](eta)
        gradient = jax.grad(loss)(theta, training)
        velocity = jax.tree.map(
            lambda v, g, p: momentum * v + g + decay * p, velocity, gradient, theta
        )
        return jax.tree.map(lambda p, v: p - rate * v, theta, velocity), velocity

    start = theta, jax.tree.map(jnp.zeros_like, theta)
    return Training(names["INNER_STEPS"], start, step, lambda _, state: loss(state[0], validation))


def _metagradient(names: dict[str, Any], args: tuple[Any, ...]) -> Training:
    _, theta, order, training, validation = args
    sgd = optax.sgd(names["LEARNING_RATE"], momentum=names["MOMENTUM"])

    def step(eta: Tree, state: Tree, place: Any) -> Tree:
        theta, momentum = state
        batch = jnp.asarray(order)[place]
        data = jax.tree.map(lambda column: jnp.asarray(column)[batch], training)
        gradient = jax.grad(names["weighted_loss"])(theta, eta[batch], data)
        updates, momentum = sgd.update(gradient, momentum)
        return optax.apply_updates(theta, updates), momentum

    def loss(_: Tree, state: Tree) -> Any:
        return names["example_losses"](state[0], validation).mean()

    return Training(len(order), (theta, sgd.init(theta)), step, loss)


_TRAININGS = {"hyperparameters": _hyperparameters, "metagradient": _metagradient}

REPLAYED = tuple(_TRAININGS)
"""The examples that a replay is written for."""


def replayed(
    model: str, entry: CompiledFunction, args: tuple[Any, ...]
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """An example's meta-loss and metagradient by replay.

    Arguments:
        model: the example's file, of one of `REPLAYED`.
        entry: its compiled function.
        args: η first.

    Returns:
        What computes (value, gradient), and figures as of a compiled program: its temporaries are
        the states held and the larger of the two compiled functions' own.
    """
    training = _TRAININGS[Path(model).stem](entry.fun.__globals__, args)
    start = time.perf_counter()
    replay = Replay(training, args[0])
    compile_s = time.perf_counter() - start
    temp = replay.temp_bytes
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(args))
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(args[0]))
    return replay.metagradient, {
        "target": "value_and_grad in the first argument",
        "temp_bytes": temp,
        "total_bytes": held + gradient + temp,
        "compile_s": compile_s,
    }


class Replay:
    """The metagradient of one training run, compiled step by step.

    Arguments:
        training: the run.
        eta: hyperparameters, a pytree.
    """

    def __init__(self, training: Training, eta: Tree) -> None:
        self._training, self._eta = training, jax.tree.map(jnp.asarray, eta)
        self._start = jax.tree.map(jnp.asarray, training.state)
        place, zeros = jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, self._eta)
        self._step = jax.jit(training.step).lower(self._eta, self._start, place).compile()
        back = jax.jit(partial(_step_back, training.step), donate_argnums=(3, 4))
        self._back = back.lower(self._eta, self._start, place, self._start, zeros).compile()
        self._loss = jax.jit(jax.value_and_grad(training.loss, (0, 1)))

    def metagradient(self) -> tuple[Any, Tree]:
        """The meta-loss and its gradient in η."""
        places = backwards(self._training.length + 1, self._start, self._forward)
        _, state = next(places)  # the state after the last step
        value, (eta_bar, state_bar) = self._loss(self._eta, state)
        for place, state in places:
            where = jnp.asarray(place, jnp.int32)
            state_bar, eta_bar = self._back(self._eta, state, where, state_bar, eta_bar)
        return value, eta_bar

    def _forward(self, state: Tree, first: int, count: int) -> Tree:
        for place in range(first, first + count):
            state = self._step(self._eta, state, jnp.asarray(place, jnp.int32))
        return state

    @property
    def temp_bytes(self) -> int:
        """Bytes of what is held at most, beside arguments and results."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(self._start))
        working = [_own_bytes(compiled) for compiled in (self._step, self._back)]
        # The state's cotangent is held as well.
        return (most_held(self._training.length + 1) + 1) * size + max(working)


def _own_bytes(compiled: Any) -> int:
    """Bytes that a compiled step needs beside its arguments."""
    memory = compiled.memory_analysis()
    return total_bytes(compiled) - memory.argument_size_in_bytes


def _step_back(
    step: Callable[..., Tree], eta: Tree, state: Tree, place: Any, state_bar: Tree, eta_bar: Tree
) -> tuple[Tree, Tree]:
    """A step's pullback, η's cotangent added up."""
    _, pullback = jax.vjp(lambda eta, state: step(eta, state, place), eta, state)
    eta_more, state_bar = pullback(state_bar)
    return state_bar, jax.tree.map(jnp.add, eta_bar, eta_more)


def backwards(
    length: int, state: Any, forward: Callable[[Any, int, int], Any], first: int = 0
) -> Iterator[tuple[int, Any]]:
    """Places and states of a run, the last first.

    Arguments:
        length: how many states there are.
        state: the first of them.
        forward: runs some steps: (state, its place, how many steps) to a later state.
        first: the place of `state`.
    """
    if length == 1:
        yield first, state
        return
    part = -(-length // ARITY)
    held = [state]
    for place in range(first + part, first + length, part):
        held.append(forward(held[-1], place - part, part))
    del state
    while held:
        start = first + part * (len(held) - 1)
        yield from backwards(min(part, first + length - start), held.pop(), forward, start)


def most_held(length: int) -> int:
    """How many states are held at once, at most, to go back through so many."""
    if length == 1:
        return 1
    part = -(-length // ARITY)
    return -(-length // part) - 1 + most_held(part)
