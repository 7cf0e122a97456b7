"""What a thread records while it traces under mixflow."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import take_current_trace

from mixflow.compiler import jax_compat

# Traces made under mixflow hold symbolic equations and must never be mixed up with JAX's own
# cached traces of the same functions (nor with those of another recording, whose reasons would
# then be missing from this one's report): the value is part of JAX's trace-cache key.
_trace_key = jax.make_user_context(default_value=None)


@dataclass(frozen=True)
class Decline:
    """Something that was left as it was, with where and why."""

    stage: str
    at: str
    why: str


@dataclass(eq=False)
class Recording:
    """One trace under mixflow.

    Arguments:
        assume_symmetric: "all", or the names of functions whose custom rules the user vouches
            for (`docs/derivative-rule.md`).
        declines: filled while tracing: what was left to JAX, and why.
        num_captured: filled while tracing: how many `jax.vjp` calls became symbolic.
        finished: filled while tracing: the traces of the functions that were differentiated.
        left: the numbers of the `jax.vjp` calls, in order, that are left to JAX, as they are torn
            (`joining.py`).
        calls: filled while tracing: how many `jax.vjp` calls there were.
        captured: filled while tracing: by the number of its call, the `Soundness` of a function.
        torn: filled while tracing: the same of functions whose pullback was asked of JAX beside
            their value.
        is_whole: whether the trace is looked at when it is done, so that torn ones are found.
        outermost: the trace around this one; what JAX keeps for jits inside of it is not taken
            outside.
    """

    assume_symmetric: str | tuple[str, ...] = ()
    declines: list[Decline] = field(default_factory=list)
    num_captured: int = 0
    finished: list[Any] = field(default_factory=list)
    left: frozenset[int] = frozenset()
    calls: int = 0
    captured: dict[int, Any] = field(default_factory=dict)
    torn: list[Any] = field(default_factory=list)
    is_whole: bool = False
    outermost: Any = field(default=None, init=False)

    def trusts(self, name: str) -> bool:
        """Whether the user vouches for the custom rule of the function with this name."""
        return self.assume_symmetric == "all" or name in self.assume_symmetric

    @contextmanager
    def active(self) -> Generator[None]:
        """Capture every `jax.vjp` of this thread inside the block."""
        previous = _current.set(self)
        with take_current_trace() as trace:
            self.outermost = trace
        try:
            with _trace_key(self):
                yield
        finally:
            _current.reset(previous)

    def decline(self, why: str) -> None:
        """Record that what the user's code is calling is left to JAX."""
        at = jax_compat.source_line(jax_compat.current_source_info())
        self.declines.append(Decline("capture", at, why))


_current: ContextVar[Recording | None] = ContextVar("mixflow_recording", default=None)


@contextmanager
def paused() -> Generator[None]:
    """Capture nothing in this thread inside the block: custom rules are seen as JAX runs them."""
    previous = _current.set(None)
    try:
        with _trace_key(None):
            yield
    finally:
        _current.reset(previous)


def current_recording() -> Recording | None:
    """The recording that this thread is tracing under, if any."""
    return _current.get()
