"""Where the custom rules in a traced function can be run.

JAX traces a rule only when it differentiates the equation that holds it, which for a captured
function is later than in plain JAX, and elsewhere.
"""

from __future__ import annotations

import enum
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr

from mixflow.compiler import jax_compat
from mixflow.compiler.recording import paused
from mixflow.compiler.rules.linearity import rule_program
from mixflow.compiler.rules.suspects import custom_rules


class Replay(enum.Enum):
    """Where a function's custom rules can run; its value says why not anywhere."""

    ANYWHERE = ""
    HERE = "a custom rule closes over values of the enclosing trace"
    NOWHERE = "a custom rule closes over values of the function that it stands in"
    ON_VALUES = "a custom rule uses the value of its argument in Python"
    AT_ONCE = "a custom rule's value has another shape than its function's, or another number"
    """As of `f(x) = zeros` with a rule in x, under `vmap`: the function's value is not mapped, the
    rule's is. And of any custom rule that was checkified. JAX takes either while it traces the
    function and differentiates, but not from the function's equation afterwards."""


NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises when traced code asks for a concrete value."""


def where_rules_run(jaxpr: Any, trace: Any = None) -> Replay:
    """Try the custom rules of a traced function, those of unknown make.

    A rule may close over tracers: of the enclosing traces, which live as long as the user's code
    runs, or of the function's own trace, which is over.

    Arguments:
        jaxpr: the function's, open or closed.
        trace: the one that it came from.
    """
    traces = list[Any]()
    for equation in custom_rules(jaxpr):
        try:
            with paused():
                traces += closed_over(rule_program(equation).jaxpr)
        except jax.errors.UnexpectedTracerError:
            return Replay.NOWHERE
        except NEEDS_VALUES:
            return Replay.ON_VALUES
        except (ValueError, AssertionError, jax_compat.ClosesOver):
            # The second is JAX's, under `jax_enable_checks`. The last: a mapped equation takes what
            # its custom_vjp closes over for an argument, and JAX knows better while it maps.
            return Replay.AT_ONCE
    if trace in traces:
        return Replay.NOWHERE
    return Replay.HERE if traces else Replay.ANYWHERE


def closed_over(jaxpr: ClosedJaxpr) -> list[Any]:
    """The traces that a program's constants belong to, where those are tracers."""
    tracers = [const for const in jaxpr.consts if isinstance(const, jax.core.Tracer)]
    return list(map(jax_compat.trace_of, tracers))
