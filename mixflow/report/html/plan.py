"""The plan as it stands in the optimised program: loops, levels, steps, segments, pullbacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation

from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp, LeafOp, ReadableOp, ScanOp
from mixflow.compiler.ir.dialects.mixflow import NameOp, VjpOp
from mixflow.compiler.ir.dialects.remarks import has_remark
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.ir.places import UNKNOWN, place
from mixflow.passes.checkpoint_inner_loop import is_level
from mixflow.passes.inner_loops.find import is_inner_loop
from mixflow.passes.roll_repeated_blocks import RollRepeatedBlocks
from mixflow.passes.segment_loss import SegmentLoss
from mixflow.report.html.source import code_at

_MOST_PARTS = 40


@dataclass(frozen=True)
class Part:
    """A part of the plan, with those inside of it.

    Arguments:
        kind: for its colour: "program", "loop", "step", "segment", "pullback" or "other".
        title: what it is.
        notes: what the plan does with it.
        at, code: the first source line in it, and what stands there; of a segment, its lines, and
        their file. Empty where unknown.
        operations: all that are in it.
        parts: in program order.
        left_out: how many more parts there are.
    """

    kind: str
    title: str
    notes: tuple[str, ...]
    at: str
    code: str
    operations: int
    parts: tuple[Part, ...]
    left_out: int = 0


def draw_plan(module: ModuleOp, entry: str) -> Part:
    """The plan of a program.

    Arguments:
        module: after the passes.
        entry: what to call the program.
    """
    function = main_function(module)
    return _part(function, "program", entry, ())


def _part(op: Operation, kind: str, title: str, notes: tuple[str, ...]) -> Part:
    parts = tuple(part for region in op.regions for part in _inside(region.block))
    sources = [source for source in map(_source, op.walk()) if source != UNKNOWN]
    first = sources[0] if sources else ""
    at, code = _span(sources) if kind == "segment" else (place(first), code_at(first))
    return Part(
        kind,
        title,
        (*notes, *_saved(op)),
        at,
        code,
        sum(isinstance(one, LeafOp) for one in op.walk()),
        parts[:_MOST_PARTS],
        max(len(parts) - _MOST_PARTS, 0),
    )


def _inside(block: Block) -> Iterator[Part]:
    """The parts in a block; those in a call or a branch stand for it."""
    for op in block.ops:
        described = _described(op)
        if described is not None:
            yield _part(op, *described)
        else:
            yield from (part for region in op.regions for part in _inside(region.block))


def _described(op: Operation) -> tuple[str, str, tuple[str, ...]] | None:
    """Kind, title and notes of an operation that is a part of its own."""
    if isinstance(op, ScanOp):
        return _loop(op)
    if isinstance(op, CheckpointOp):
        return _checkpoint(op)
    if isinstance(op, VjpOp):
        return _pullback(op)
    return None


def _loop(op: ScanOp) -> tuple[str, str, tuple[str, ...]] | None:
    written_out = has_remark(op, RollRepeatedBlocks.name)
    if _is_level_of_loops(op):
        notes = ("reruns its steps going back", *(("was written out",) if written_out else ()))
        return "loop", f"level of {op.length}", notes
    times = (f"×{op.length}",) if written_out else ()
    if is_inner_loop(op):
        return "loop", f"inner loop, {op.length} steps", times
    is_empty = next(_inside(op.regions[0].block), None) is None
    return None if is_empty else ("loop", f"loop, {op.length} steps", times)


def _is_level_of_loops(op: ScanOp) -> bool:
    """Whether a loop is there because the one in it was nested: both are made by one line."""
    level = op.regions[0].block.first_op
    inner = level.body.block.first_op if is_level(level) else None
    return isinstance(inner, ScanOp) and inner.source == op.source


def _checkpoint(op: CheckpointOp) -> tuple[str, str, tuple[str, ...]]:
    again = ("saves its inputs, is rerun going back",)
    if is_level(op):
        return "step", _step(op), again
    if op.made_by is None:
        return "other", "a jax.checkpoint of yours", ()
    is_segment = op.made_by.data == SegmentLoss.name and op.inline
    return ("segment", "segment", ()) if is_segment else ("step", "layer", again)


def _step(op: CheckpointOp) -> str:
    if op.inline:
        return "first step, peeled"
    return "run of steps" if isinstance(op.body.block.first_op, ScanOp) else "step"


_MODES = {"symmetric": "forward over reverse", "transposed": "reverse over forward"}


def _pullback(op: VjpOp) -> tuple[str, str, tuple[str, ...]]:
    title = "value and gradient" if op.with_value else "gradient"
    is_inner = any(isinstance(one, (ScanOp, CheckpointOp, VjpOp)) for one in _around(op))
    mode = (_MODES[op.rule.data],) if op.rule else ()
    return "pullback", f"inner {title}" if is_inner else f"outer {title}", mode


def _around(op: Operation) -> Iterator[Operation]:
    parent = op.parent_op()
    while parent is not None:
        yield parent
        parent = parent.parent_op()


def _saved(op: Operation) -> tuple[str, ...]:
    """How many gradients a step names so that it need not compute them again."""
    if not isinstance(op, CheckpointOp) or op.saved is None:
        return ()
    count = sum(isinstance(one, NameOp) for one in op.walk())
    return (f"saves its inner gradients ({count} array{'s' * (count > 1)})",)


def _source(op: Operation) -> str:
    return op.source if isinstance(op, ReadableOp) else UNKNOWN


def _span(sources: list[str]) -> tuple[str, str]:
    """From where to where the lines go that come from the same file as most of them; the file."""
    if not sources:
        return "", ""
    pairs = [source.rpartition(":") for source in sources]
    file = Counter(name for name, _, _ in pairs).most_common(1)[0][0]
    lines = [int(line) for name, _, line in pairs if name == file]
    span = dict.fromkeys((min(lines), max(lines)))
    return f"line{'s' * (len(span) > 1)} {'–'.join(map(str, span))}", PurePath(file).name
