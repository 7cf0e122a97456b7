"""Is what mixflow makes of a program what plain JAX makes of it?

Results are compared in float64 by the largest difference relative to the leaf's largest entry.
Allowed is 1e-9, or ten times what changes of the arguments by one unit in the last place do to
plain JAX's own result, where that is more. A program of which part computes in less precision is
nudged by a unit of that one, and allowed a few of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.tree_util import tree_leaves, tree_map, tree_structure

from benchmarks.fuzz.plans import RULES
from benchmarks.fuzz.program import load
from mixflow.planner.pipeline import Optimised
from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.options import Options

TOLERANCE = 1e-9
NOISE_FACTOR = 10.0
TOO_NOISY = 1e-2
"""A program with more noise than this cannot be judged."""

TINY = 1e-13
"""Arguments are near 1: a difference below this is what is left where terms cancel."""

UNITS = 64
"""How many units of half precision are allowed, where part of a program computes in it."""

RIGHT, WRONG, CRASH, NAN, UNSURE = "right", "wrong", "crash", "nan", "unsure"
FAULTS = (WRONG, CRASH, NAN)

Run = Callable[[Any, tuple[Any, ...]], Any]
"""How a compiled function is run."""


def run_compiled(function: Any, args: tuple[Any, ...]) -> Any:
    """By XLA, as a user would."""
    return jax.block_until_ready(function(*args))


class PlainFails(Exception):
    """Plain JAX does not run the program, or makes nothing of it that can be compared."""


@dataclass(frozen=True)
class Verdict:
    """Arguments:
    kind: "right", "wrong", "crash", "nan", or "unsure" where plain JAX's noise hides it.
    passes: the pipeline that was forced; None for the planner's choice.
    why: how far off, or the exception.
    rewritten: whether some gradient was given another rule than JAX's.
    declines: the reasons for which others were left alone.
    """

    kind: str
    passes: str | None
    why: str = ""
    rewritten: bool = False
    declines: tuple[str, ...] = ()

    @property
    def is_fault(self) -> bool:
        """Whether it is a fault of mixflow."""
        return self.kind in FAULTS

    def is_like(self, other: Verdict) -> bool:
        """Whether another one says the same, but for numbers and names."""
        return self.kind == other.kind and (
            self.kind != CRASH or self.why.split(":")[0] == other.why.split(":")[0]
        )


class Reference:
    """What plain JAX makes of a program.

    Arguments:
        source: the program's.
        run: how it is run, and mixflow's.

    Raises:
        PlainFails: plain JAX is no reference for it.
    """

    def __init__(self, source: str, run: Run = run_compiled) -> None:
        self.run = run
        try:
            self.names = load(source)
            self.args = self.names["args"]
            self._plain = self.names["program"](jax.jit)
            with warnings.catch_warnings(action="ignore"):
                self.result = run(self._plain, self.args)
            self.kinds = _kinds(self.result)
            finite = any(np.isfinite(leaf).any() for leaf in _arrays(self.result))
        except Exception as error:
            raise PlainFails(_first_line(error)) from error
        if not finite:
            raise PlainFails("nothing is finite")

    @property
    def unit(self) -> float:
        """The unit in the last place of the least precision that the program computes in."""
        return float(jnp.finfo(self.names.get("HALF", float)).eps)

    @property
    def floor(self) -> float:
        """The difference that is always allowed."""
        return TOLERANCE if self.unit < TOLERANCE else UNITS * self.unit

    @cached_property
    def noise(self) -> float:
        """How far the result changes with arguments that change by a unit."""
        with warnings.catch_warnings(action="ignore"):
            nudged = [self.run(self._plain, _nudged(self.args, self.unit, k)) for k in range(3)]
        return max(difference(other, self.result) for other in nudged)

    @cached_property
    def checkpointed(self) -> Any:
        """The result with the steps of all scans checkpointed."""
        scan = jax.lax.scan

        def checkpointed_scan(step: Any, *args: Any, **kwargs: Any) -> Any:
            return scan(jax.checkpoint(step), *args, **kwargs)

        with mock.patch.object(jax.lax, "scan", checkpointed_scan):
            return self.run(self.names["program"](jax.jit), self.args)

    @cached_property
    def unrolled(self) -> Any:
        """The result with scans unrolled: its leaves."""
        with jax.disable_jit():
            traced = jax.make_jaxpr(self.names["program"](lambda f: f))(*self.args)
        return self.run(jax.jit(jaxpr_as_fun(traced)), tuple(tree_leaves(self.args)))


@dataclass
class Spy:
    """Stands in for `mixflow.compile`, and keeps what became of each program.

    Arguments:
        passes: the pipeline; None for the planner's choice.
        seen: the programs after the passes.
    """

    passes: str | None
    seen: list[Optimised] = field(default_factory=list)

    def __call__(self, fun: Callable[..., Any]) -> CompiledFunction:
        seen = self.seen

        class Watched(CompiledFunction):
            def _optimised(self, *args: Any, **kwargs: Any) -> Optimised:
                seen.append(super()._optimised(*args, **kwargs))
                return seen[-1]

        return Watched(fun, Options(passes=self.passes))

    def verdict(self, kind: str, why: str = "") -> Verdict:
        """A verdict, with what was done and what was left alone."""
        rewritten = any(one.by in RULES for found in self.seen for one in found.rewrites)
        declines = {f"{one.by}: {one.text}" for found in self.seen for one in found.declines}
        return Verdict(kind, self.passes, why, rewritten, tuple(sorted(declines)))


def judge(reference: Reference, passes: str | None) -> Verdict:
    """Run a program by mixflow, under a pipeline, and compare."""
    spy = Spy(passes)
    try:
        with warnings.catch_warnings(action="ignore"):
            result = reference.run(reference.names["program"](spy), reference.args)
    except Exception as error:
        return spy.verdict(CRASH, f"{type(error).__name__}: {_first_line(error)}")
    if _kinds(result) != reference.kinds:
        return spy.verdict(WRONG, f"{_kinds(result)} in place of {reference.kinds}")
    return spy.verdict(*_compared(result, reference))


def _compared(result: Any, reference: Reference) -> tuple[str, str]:
    """A verdict's kind and why. What costs time is looked at last, and seldom."""
    off = difference(result, reference.result)
    if off <= reference.floor:
        return RIGHT, ""
    allowed = max(reference.floor, NOISE_FACTOR * reference.noise)
    if not allowed <= TOO_NOISY * NOISE_FACTOR:
        return UNSURE, f"plain JAX's own noise is {reference.noise:.1e}"
    if off <= allowed:
        return RIGHT, ""
    contradiction = _contradiction(result, reference, allowed)
    if contradiction is not None:
        return contradiction
    if np.isinf(off):
        return NAN, "not finite where plain JAX is"
    return WRONG, f"off by {off:.1e}, {allowed:.1e} is allowed"


def _contradiction(result: Any, reference: Reference, allowed: float) -> tuple[str, str] | None:
    """A verdict where plain JAX's result is not that of the same program in other words."""
    if difference(tree_leaves(result), reference.unrolled) <= allowed:
        return RIGHT, "as the unrolled program is: plain JAX contradicts itself"
    if difference(reference.unrolled, tree_leaves(reference.result)) > allowed:
        return UNSURE, "plain JAX contradicts itself: the unrolled program has another result"
    if difference(reference.checkpointed, reference.result) > allowed:
        return UNSURE, "plain JAX contradicts itself: with checkpoints it has another result"
    return None


def difference(result: Any, expected: Any) -> float:
    """The largest |a - b| / max |b| over leaves; infinite where a is not finite and b is.

    Entries that are not finite in b say nothing. A leaf is measured against a millionth of the
    largest one at least: less is left where terms cancel.
    """
    pairs = list(zip(_arrays(result), _arrays(expected), strict=True))
    scales = [_largest(b) for _, b in pairs]
    least = 1e-6 * max(scales, default=0.0)
    return max(
        (_off(a, b, max(scale, least)) for (a, b), scale in zip(pairs, scales, strict=True)),
        default=0.0,
    )


def _off(a: np.ndarray, b: np.ndarray, scale: float) -> float:
    finite = np.isfinite(b)
    if not np.isfinite(a[finite]).all():
        return np.inf
    off = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    return 0.0 if off <= TINY else off / scale if scale else np.inf


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def _arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf).astype(np.complex128) for leaf in tree_leaves(tree)]


def _kinds(tree: Any) -> str:
    kinds = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in tree_leaves(tree)]
    return f"{tree_structure(tree)} of {', '.join(kinds)}"


def _nudged(args: Any, unit: float, seed: int) -> Any:
    """The arguments with every float changed by one unit, up or down."""
    rng = np.random.default_rng(seed)

    def change(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return leaf
        return leaf * (1 + unit * rng.choice((-1, 1), np.shape(leaf)))

    return tree_map(change, args)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"
