"""What of a program decides which plans there are."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.analysis.residuals import total_size
from mixflow.compiler.derivative.differentiand import Rule
from mixflow.compiler.ir.dialects.jaxpr import ScanOp
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.jaxprs.sizes import number_of
from mixflow.passes.checkpoint_inner_loop import is_inner_loop
from mixflow.passes.keep_first_products import first_products
from mixflow.passes.peel_inactive_step import gains_from_peeling

MOST_PEELED = 16
"""A first step saves less, the more steps there are, and has to be compiled all the same."""


@dataclass(frozen=True)
class Facts:
    """What there is to plan.

    Arguments:
        steps: of the longest inner loop; 0 without one.
        state_bytes: what the inner loops' steps are given, for all of their steps together.
        nested: whether a gradient is differentiated again.
        symmetric: whether that may be forward over reverse.
        transposed: whether one that may not be can be reverse over forward.
        peelable: whether the first step of an inner loop is better off alone.
        distributed: whether a loss begins with products of parameters that lie on several devices.
    """

    steps: int
    state_bytes: int
    nested: bool
    symmetric: bool
    transposed: bool = False
    peelable: bool = False
    distributed: bool = False

    @property
    def rewritable(self) -> bool:
        """Whether a gradient that is differentiated again may be rewritten, by either rule."""
        return self.symmetric or self.transposed


def facts_of(module: ModuleOp | None, *, peeling: bool) -> Facts:
    """The facts of a program.

    Arguments:
        module: with every gradient marked that either rule is allowed for; None for a program
            that the IR does not hold.
        peeling: whether a step that stands before its loop can be checkpointed.
    """
    if module is None:
        return Facts(0, 0, nested=False, symmetric=False)
    activity = find_activity(main_function(module))
    loops = [op for op in activity.loops if is_inner_loop(op)]
    steps = max(map(_steps, loops), default=0)
    rules = {Rule(op.rule.data) for op in activity.pullbacks if op.rule is not None}
    return Facts(
        steps,
        sum(number_of(op.length) * _carried(op) for op in loops),
        nested=bool(activity.pullbacks),
        symmetric=Rule.SYMMETRIC in rules,
        transposed=Rule.TRANSPOSED in rules,
        peelable=peeling
        and steps <= MOST_PEELED
        and any(gains_from_peeling(op, activity.values) for op in loops),
        distributed=any(any(first_products(op)) for op in activity.pullbacks),
    )


def _steps(op: ScanOp) -> int:
    """The length of a loop that can be nested: 1 where jax.export has left it open."""
    return op.length if isinstance(op.params["length"], int) else 1


def _carried(op: ScanOp) -> int:
    """Bytes of the state that a step is given."""
    return total_size(op.operands[op.num_consts :][: op.num_carry])
