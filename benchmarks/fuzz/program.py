"""A random program: Python source that runs alone, and what its generator knows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HEADER = """\
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

jax.config.update("jax_enable_x64", True)

"""

X64 = "jax.config.update('jax_enable_x64', True)"
"""Stands in each program, as Python prints it: in single precision equality means little."""

FOOTER = """

if __name__ == "__main__":
    import functools

    import mixflow

    want = program(jax.jit)(*args)
    got = program(functools.partial(mixflow.compile, passes={passes!r}))(*args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        print("mixflow", a, "plain JAX", b, sep="\\n")
"""


@dataclass(frozen=True)
class Program:
    """Arguments:
    seed: its number.
    source: defines `program`, which takes `jax.jit` or `mixflow.compile` and returns a
        function, and that one's arguments, `args`.
    features: what is in it, in words.
    linear: whether all rules in it are provably linear.
    """

    seed: int
    source: str
    features: tuple[str, ...]
    linear: bool


def load(source: str) -> dict[str, Any]:
    """Run a program's source: its names. Raises what the source raises."""
    names: dict[str, Any] = {"__name__": "random_program"}
    exec(compile(source, "<random program>", "exec"), names)
    return names


def standalone(source: str, passes: str | None) -> str:
    """The source with lines that run it by plain JAX and by mixflow, and print both."""
    return source + FOOTER.format(passes=passes)
