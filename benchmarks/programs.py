"""The programs that are compared, by name, each jitted as its user would jit it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import mixflow
from benchmarks import expert
from benchmarks.expert import Annotations
from benchmarks.reference import Size, arguments, gradient_step, meta_loss

BY_HAND = {
    "checkpointed-step": Annotations(rule=False, blocks=False, save=False),
    "checkpointed-blocks-and-step": Annotations(rule=False, save=False),
    "expert-without-blocks": Annotations(blocks=False, save=False),
    "expert-without-saving": Annotations(save=False),
    "expert": Annotations(),
}
"""Annotated by hand: `jax.checkpoint` alone, then the expert's program and parts of it."""

COMPARED = ("plain", "checkpointed-step", "expert", "mixflow")
"""What is run by default."""

UNIT = "gradient-step"
"""One plain gradient of the loss: the unit of the cost in gradient steps."""

NAMES = ("plain", *BY_HAND, "mixflow", "mixflow@BUDGET")
"""What can be asked for; a budget is a size such as 400MB."""


def is_program(name: str) -> bool:
    """Whether there is a program of this name."""
    kind, _, budget = name.partition("@")
    return kind == "mixflow" if budget else name in NAMES


def make(name: str, size: Size, task: str) -> tuple[Any, tuple[Any, ...]]:
    """A fresh program and its arguments.

    Those by hand are compiled with the XLA options that mixflow sets for its own: JAX 0.10 on CPU
    would undo their checkpoints otherwise. Plain JAX is compiled as it is.

    Returns:
        What has `.lower(*args)`, and args.
    """
    args = arguments(size, task)
    if name == UNIT:
        return jax.jit(gradient_step(size)), args
    if name == "plain":
        return jax.jit(jax.value_and_grad(meta_loss(size, task))), args
    if name in BY_HAND:
        return _by_hand(expert.meta_loss(size, task, BY_HAND[name])), args
    if not is_program(name):
        raise ValueError(f"there is no program {name!r}")
    budget = name.partition("@")[2]
    options: dict[str, Any] = {"memory_budget": budget} if budget else {}
    return mixflow.compile(jax.value_and_grad(meta_loss(size, task)), **options), args


def _by_hand(loss: Callable[..., Any]) -> Any:
    options = mixflow.compiler_options() or None
    return jax.jit(jax.value_and_grad(loss), compiler_options=options)
