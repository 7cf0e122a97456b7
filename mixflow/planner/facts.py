"""What of a program decides which plans there are."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.analysis.residuals import residual_bytes
from mixflow.compiler.derivative.differentiand import Rule
from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp, ScanOp
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.jaxprs.sizes import number_of
from mixflow.passes.inner_loops.find import inner_loops, users_checkpoints
from mixflow.passes.keep_first_products import first_products
from mixflow.passes.peel_inactive_step import gains_from_peeling
from mixflow.planner.loops import Loops
from mixflow.planner.loops_of import loops_of

MOST_PEELED = 16
"""A first step saves less, the more steps there are, and has to be compiled all the same."""


@dataclass(frozen=True)
class Facts:
    """What there is to plan.

    Arguments:
        loops: that take gradient steps, or hold such loops.
        residual_bytes: what the forward passes of the gradients that are differentiated again save
            for their backward passes, all steps together; without those in a checkpoint of the
            user's, which are rerun one by one.
        gradients: how many gradients are taken that are differentiated again, in all steps.
        nested: whether a gradient is differentiated again.
        symmetric: whether that may be forward over reverse.
        transposed: whether one that may not be can be reverse over forward.
        peelable: whether the first step of an inner loop is better off alone.
        distributed: whether a loss begins with products of parameters that lie on several devices.
        checkpointed: whether the user has put gradient steps in a `jax.checkpoint`.
    """

    loops: Loops
    residual_bytes: int
    gradients: int
    nested: bool
    symmetric: bool
    transposed: bool = False
    peelable: bool = False
    distributed: bool = False
    checkpointed: bool = False

    @property
    def steps(self) -> int:
        """The steps of the longest inner loop that may be nested; 0 without one."""
        return self.loops.longest

    @property
    def rewritable(self) -> bool:
        """Whether a gradient that is differentiated again may be rewritten, by either rule."""
        return self.symmetric or self.transposed


def facts_of(module: ModuleOp | None, *, peeling: bool, respect: bool = False) -> Facts:
    """The facts of a program.

    Arguments:
        module: with every gradient marked that either rule is allowed for; None for a program
            that the IR does not hold.
        peeling: whether a step that stands before its loop can be checkpointed.
        respect: whether steps that the user has checkpointed are to stay as they are.
    """
    if module is None:
        return Facts(Loops(), residual_bytes=0, gradients=0, nested=False, symmetric=False)
    activity = find_activity(main_function(module))
    named = inner_loops(main_function(module), activity)
    loops = loops_of(named, activity.values, respect=respect)
    rules = {Rule(op.rule.data) for op in activity.pullbacks if op.rule is not None}
    return Facts(
        loops,
        residual_bytes=sum(
            _times(op) * residual_bytes(op.body.block, activity.values)
            for op in activity.pullbacks
            if not _is_rerun(op)
        ),
        gradients=sum(map(_times, activity.pullbacks)),
        nested=bool(activity.pullbacks),
        symmetric=Rule.SYMMETRIC in rules,
        transposed=Rule.TRANSPOSED in rules,
        peelable=peeling
        and loops.longest <= MOST_PEELED
        and any(gains_from_peeling(op, activity.values) for op in named.values()),
        distributed=any(any(first_products(op)) for op in activity.pullbacks),
        checkpointed=any(any(users_checkpoints(op)) for op in named.values()),
    )


def _times(op: Operation) -> int:
    """How often an operation runs, by the lengths of the loops around it."""
    around = op.parent_op()
    if around is None:
        return 1
    return _times(around) * (number_of(around.length) if isinstance(around, ScanOp) else 1)


def _is_rerun(op: Operation) -> bool:
    """Whether an operation stands in a checkpoint, at any depth."""
    around = op.parent_op()
    return around is not None and (isinstance(around, CheckpointOp) or _is_rerun(around))
