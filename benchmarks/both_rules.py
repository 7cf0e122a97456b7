"""The symmetric and the transposed rule side by side: XLA's temporaries, and CPU seconds of a run.

The examples take their default plans, the rule replaced, or put before the checkpointed step where
their plan needs none. The reference program takes the symmetric rule with `jax.nn.gelu`, and the
transposed one where every layer has a function that mixflow does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import mixflow
from benchmarks.estimates import examples
from benchmarks.reference import Size, arguments, meta_loss
from benchmarks.turns import cpu_ratio

Row = dict[str, Any]

RULES = ("forward-over-reverse", "reverse-over-forward")

ROUNDS = 3
"""Runs of each program, in turn; the fastest counts."""


@jax.custom_vjp
def true_vjp(x: Any) -> Any:
    """gelu with its own derivative as a rule, which mixflow cannot know to be true."""
    return jax.nn.gelu(x)


true_vjp.defvjp(lambda x: (jax.nn.gelu(x), x), lambda x, g: jax.vjp(jax.nn.gelu, x)[1](g))


@jax.custom_jvp
def untrue_jvp(x: Any) -> Any:
    """gelu with the slope of a steeper one, which is not its derivative."""
    return jax.nn.gelu(x)


untrue_jvp.defjvps(lambda t, y, x: t * jax.nn.sigmoid(2.0 * x))

REPLACED = {"a true custom_vjp": true_vjp, "an untrue custom_jvp": untrue_jvp}
"""What stands in each layer of the reference program in place of gelu."""


def both_rules(folder: Path, size: Size) -> Iterator[Row]:
    """For each program its figures under both rules, and their ratios.

    Arguments:
        folder: of the examples.
        size: of the reference program.
    """
    for subject in examples(folder):
        plan = mixflow.compile(subject.gradient).optimised(*subject.args).passes
        programs = [_with_rule(subject.gradient, plan, rule) for rule in RULES]
        yield _row(subject.name.partition(".")[0], programs, subject.args)
    symmetric = _reference(size, jax.nn.gelu)
    for words, activation in REPLACED.items():
        programs = [symmetric, _reference(size, activation)]
        yield _row(f"reference, {words}", programs, arguments(size))


def _with_rule(gradient: Callable[..., Any], plan: str, rule: str) -> Callable[..., Any]:
    if "-over-" not in plan:
        plan = plan.replace("checkpoint-inner-loop", f"{rule},checkpoint-inner-loop")
    return mixflow.compile(gradient, passes=re.sub(r"[a-z]+-over-[a-z]+", rule, plan))


def _reference(size: Size, activation: Callable[[Any], Any]) -> Callable[..., Any]:
    return mixflow.compile(jax.value_and_grad(meta_loss(size, activation=activation)))


def _row(name: str, programs: list[Any], args: tuple[Any, ...]) -> Row:
    compiled = [program.lower(*args).compile() for program in programs]
    symmetric, transposed = (one.memory_analysis().temp_size_in_bytes for one in compiled)
    args = jax.tree.map(jnp.asarray, args)
    one, other = (partial(program, *args) for program in compiled)
    return {
        "program": name,
        "symmetric_bytes": symmetric,
        "transposed_bytes": transposed,
        "bytes_ratio": transposed / symmetric,
        "cpu_ratio": cpu_ratio(other, one, ROUNDS),
    }
