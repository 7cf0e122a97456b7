"""The loops that take gradient steps, and the user's own checkpoints in them."""

from __future__ import annotations

from pathlib import PurePath

from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation

from mixflow.compiler.analysis.activity import Activity
from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp, ScanOp
from mixflow.compiler.ir.dialects.mixflow import VjpOp

_UNQUOTED = str.maketrans(dict.fromkeys('"\\\n', "_"))
"""A plan's text has names in quotes, and cannot write these characters between them."""


def inner_loops(function: FuncOp, activity: Activity) -> dict[str, ScanOp]:
    """The differentiated loops with gradient steps in them, at any depth, by their names.

    A name is the file and the line: `train.py:30`, or `train.py:30#2` for the second loop of that
    line. Plans name loops so.

    Arguments:
        function: the program.
        activity: its active operations.
    """
    found = dict[str, ScanOp]()
    for op in function.walk():
        if isinstance(op, ScanOp) and op in activity.loops and has_gradient(op):
            found[_name(op.source, found)] = op
    return found


def _name(source: str, taken: dict[str, ScanOp]) -> str:
    line = PurePath(source).name.translate(_UNQUOTED)
    number, name = 1, line
    while name in taken:
        number += 1
        name = f"{line}#{number}"
    return name


def is_inner_loop(op: ScanOp) -> bool:
    """Whether a loop takes gradient steps itself, not by way of a loop inside it."""
    return any(isinstance(other, VjpOp) and _nearest_loop(other, op) is op for other in op.walk())


def _nearest_loop(op: Operation, root: ScanOp) -> Operation | None:
    parent = op.parent_op()
    while parent is not None and parent is not root and not isinstance(parent, ScanOp):
        parent = parent.parent_op()
    return parent


def has_gradient(op: Operation) -> bool:
    """Whether an operation takes a gradient, at any depth."""
    return any(isinstance(inner, VjpOp) for inner in op.walk())


# --- the user's checkpoints ---------------------------------------------------------------------


def is_checkpointed(op: ScanOp) -> bool:
    """Whether every gradient in the body stands in a checkpoint already."""
    bare = [other for other in op.regions[0].block.ops if not isinstance(other, CheckpointOp)]
    return not any(map(has_gradient, bare))


def users_checkpoints(op: ScanOp) -> list[CheckpointOp]:
    """The user's checkpoints in a loop's body that gradients stand in."""
    found = [one for one in op.regions[0].block.ops if isinstance(one, CheckpointOp)]
    return [one for one in found if one.equation is not None and has_gradient(one)]


def has_policy(op: CheckpointOp) -> bool:
    """Whether a user's checkpoint says what it saves."""
    return op.equation is not None and op.equation.data.params["policy"] is not None


def users_steps(op: ScanOp) -> list[CheckpointOp]:
    """The user's checkpoints that hold the step; none where a gradient stands outside of them."""
    return users_checkpoints(op) if is_checkpointed(op) else []


def are_left_to_user(theirs: list[CheckpointOp], *, respect: bool) -> bool:
    """Whether checkpoints of the user's around a step are to stay.

    Arguments:
        theirs: from `users_steps`.
        respect: whether those that do not say what they save are to stay as well.
    """
    return any(respect or has_policy(one) for one in theirs)
