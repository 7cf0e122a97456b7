"""The passes, by the names that a pipeline uses. A new pass is a file here and a line below."""

from __future__ import annotations

from xdsl.passes import ModulePass
from xdsl.transforms.common_subexpression_elimination import CommonSubexpressionElimination
from xdsl.transforms.dead_code_elimination import DeadCodeElimination

from mixflow.passes.canonicalize import Canonicalize
from mixflow.passes.checkpoint_inner_loop import CheckpointInnerLoop
from mixflow.passes.forward_over_reverse import ForwardOverReverse
from mixflow.passes.fuse_value_and_pullback import FuseValueAndPullback
from mixflow.passes.keep_first_products import KeepFirstProducts
from mixflow.passes.peel_inactive_step import PeelInactiveStep
from mixflow.passes.reverse_over_forward import ReverseOverForward
from mixflow.passes.roll_repeated_blocks import RollRepeatedBlocks
from mixflow.passes.save_inner_gradients import SaveInnerGradients
from mixflow.passes.segment_loss import SegmentLoss

PASSES: dict[str, type[ModulePass]] = {
    cls.name: cls
    for cls in (
        Canonicalize,
        CommonSubexpressionElimination,
        DeadCodeElimination,
        RollRepeatedBlocks,
        FuseValueAndPullback,
        PeelInactiveStep,
        ForwardOverReverse,
        ReverseOverForward,
        CheckpointInnerLoop,
        SaveInnerGradients,
        KeepFirstProducts,
        SegmentLoss,
    )
}

OF_XDSL = {
    CommonSubexpressionElimination.name: "Equal operations become one (xDSL's own).",
    DeadCodeElimination.name: "What nobody reads is removed (xDSL's own).",
}
"""What xDSL's passes do; mixflow's say it in their docstrings."""

DEFAULT_PIPELINE = (
    "canonicalize,roll-repeated-blocks,cse,fuse-value-and-pullback,canonicalize,"
    "peel-inactive-step,forward-over-reverse,reverse-over-forward,checkpoint-inner-loop,"
    "save-inner-gradients,keep-first-products,segment-loss"
)
"""The rewrites in the order that they need. What a program gets is the planner's choice."""

__all__ = ["DEFAULT_PIPELINE", "OF_XDSL", "PASSES"]
