"""Code that was unrolled in Python becomes a loop again.

    x1 = layer(x0, w0)
    x2 = layer(x1, w1)        →        x12 = scan(layer, x0, stack(w0, w1, …, w11))
    …
    x12 = layer(x11, w11)

Everything after it works on one body: the other passes, the planner, JAX's derivatives, XLA.
Gradient steps become an inner loop, with all that inner loops get.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation
from xdsl.passes import ModulePass

from mixflow.compiler.analysis.kinds import Kinds
from mixflow.compiler.analysis.repeats import find_repeats
from mixflow.compiler.analysis.residuals import total_size
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.dialects.remarks import rewrote
from mixflow.passes.rolling.roll import Roll
from mixflow.passes.rolling.scan import roll_up

STACKED_AT_MOST = 1 / 16
"""What is stacked is copied, and lies there while the loop runs, and so do its tangents and
gradients. It may be so much of what the windows compute. With the reference program's layers
it is 0.011, and the plan takes 1.09 of the memory that it takes written out; with four layers that
are wider than their examples are many (test-time training) it is 0.18, and would take 1.14."""

GRADIENT = 4
"""A gradient computes so many times what its function does: that goes forward and back, and both
once more with tangents where the gradient is differentiated."""


LAYERS = 32
"""The fewest windows without a gradient, such as layers, that are rolled unasked. As a loop on a
CPU the reference program's twelve layers take 1.09 of the time and two thirds of the compile time,
and the four of `examples/data_weighting.py` 1.35 of the time. Of so many, compiling is the most."""


def pays(roll: Roll, layers: int) -> bool:
    """Whether windows hold gradients, or are many, and little is stacked beside what they compute.

    Arguments:
        layers: the fewest windows without a gradient.
    """
    holds_gradient = any(isinstance(one, VjpOp) for op in roll.windows[0] for one in op.walk())
    if not holds_gradient and len(roll.windows) < layers:
        return False
    computed = sum(_computed(op) for window in roll.windows for op in window)
    return roll.copied_bytes <= STACKED_AT_MOST * computed


def _computed(op: Operation) -> int:
    """Bytes of all that an operation computes, those inside of it counted once."""
    times = GRADIENT if isinstance(op, VjpOp) else 1
    inside = (one for region in op.regions for one in region.block.ops)
    return total_size(op.results) + times * sum(map(_computed, inside))


def roll_block(block: Block, kinds: Kinds, layers: int) -> bool:
    """Make a loop of the windows in a block whose loop saves the most; whether there were any."""
    for repeat in find_repeats(block, kinds):
        roll = Roll(repeat)
        if roll.roles and pays(roll, layers):
            loop = roll_up(roll)
            text = f"this and {len(roll.windows) - 1} more that do the same are one loop"
            rewrote(loop, RollRepeatedBlocks.name, text)
            return True
    return False


@dataclass(frozen=True)
class RollRepeatedBlocks(ModulePass):
    """Windows of equal operations, one after the other, become a loop."""

    name = "roll-repeated-blocks"
    layers: int = LAYERS

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        kinds = Kinds()
        # The outermost first: of tasks that hold steps, one task is left to look into.
        pending: list[Block] = [block for region in op.regions for block in region.blocks]
        while pending:
            block = pending.pop()
            while roll_block(block, kinds, self.layers):
                pass
            regions = (region for one in block.ops for region in one.regions)
            pending += [inner for region in regions for inner in region.blocks]
