"""Plans: the choices for one program, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixflow.planner.pipeline import PREPARE, ROLLED, Optimised

SLOWEST = 1.35
"""Without a budget, plans that take longer than this times the fastest one's time are left out."""

ALIKE = 1.01
"""Plans within this factor of each other are equally good: estimates are no nearer to XLA."""


@dataclass(frozen=True)
class Wishes:
    """What the user wants of any plan.

    Arguments:
        respect: their own checkpoints are to stay as they are.
        roll: code that is repeated may become loops.
    """

    respect: bool = False
    roll: bool = True


@dataclass(frozen=True)
class Plan:
    """The choices for one program.

    Arguments:
        fused: values are computed with their gradients, as plain JAX does, if nothing else is done.
        rolled: code that is repeated becomes loops.
        peeled: the first step stands before its loop, where less of it is differentiated.
        symmetric: forward over reverse, where that is sound.
        transposed: reverse over forward where that is not, and this is.
        levels: how deep inner loops are nested in checkpoints; 0 for not at all.
        respect: whether steps that the user has checkpointed are left out of that.
        gradients: whether inner gradients are saved.
        products: whether first products of parameters on several devices are saved, too.
        slack: bytes that a segmented region may take beyond the least; None for no segments.
        rerun: how much of a region may be rerun for less memory, in forward passes.
    """

    fused: bool = False
    rolled: bool = False
    peeled: bool = False
    symmetric: bool = False
    transposed: bool = False
    levels: int = 0
    respect: bool = False
    gradients: bool = False
    products: bool = False
    slack: int | None = None
    rerun: float = 1.0

    @property
    def rewritten(self) -> bool:
        """Whether gradients that are differentiated again are rewritten, by either rule."""
        return self.symmetric or self.transposed

    @property
    def repeats(self) -> bool:
        """Whether gradients are computed again in the second run of a step."""
        return self.levels > 0 and not self.gradients

    @property
    def passes(self) -> str:
        """The pipeline, as `mixflow.compile(passes=...)` takes it."""
        if self in (Plan(), Plan(fused=True)):
            return "fuse-value-and-pullback" if self.fused else ""
        found = [ROLLED if self.rolled else PREPARE]
        if self.peeled:
            found.append("peel-inactive-step")
        if self.symmetric:
            found.append("forward-over-reverse")
        if self.transposed:
            found.append("reverse-over-forward")
        if self.levels:
            respect = " respect=true" if self.respect else ""
            found.append(f"checkpoint-inner-loop{{levels={self.levels}{respect}}}")
        if self.gradients:
            found.append("save-inner-gradients")
        if self.products and not self.repeats:
            found.append("keep-first-products")
        if self.slack is not None:
            found.append(f"segment-loss{{slack={self.slack} rerun={self.rerun}}}")
        return ",".join(found)


@dataclass(frozen=True)
class Candidate:
    """A plan, what it makes of the program, and what that costs by mixflow's own estimate.

    Arguments:
        plan: the choices.
        optimised: the program after the plan's passes.
        total_bytes: arguments + results + temporaries at the peak.
        seconds: of one run on the device; an estimate good for comparing.
    """

    plan: Plan
    optimised: Optimised
    total_bytes: float
    seconds: float

    @property
    def figures(self) -> tuple[float, float]:
        """Bytes and seconds."""
        return self.total_bytes, self.seconds

    def is_beaten(self, other: Candidate) -> bool:
        """Whether another candidate needs less of the one and no more of the other."""
        mine, others = self.figures, other.figures
        return mine != others and others[0] <= mine[0] and others[1] <= mine[1]

    def is_as_good(self, other: Candidate) -> bool:
        """Whether it takes no more than another candidate of either, as far as estimates tell."""
        pairs = zip(self.figures, other.figures, strict=True)
        return all(mine <= ALIKE * others for mine, others in pairs)

    @property
    def score(self) -> float:
        """What is made least where there is no budget."""
        return score(self.total_bytes, self.seconds)


def score(total_bytes: float, seconds: float) -> float:
    """Bytes and seconds in one figure, the less the better: 10% longer has to be 5% less."""
    return total_bytes * math.sqrt(seconds)


def balanced(figures: Sequence[tuple[float, float]]) -> int:
    """The place of the plan to take where there is no budget.

    Arguments:
        figures: bytes and seconds of each plan.
    """
    bearable = SLOWEST * min(seconds for _, seconds in figures)
    allowed = [position for position, (_, seconds) in enumerate(figures) if seconds <= bearable]
    return min(allowed, key=lambda position: score(*figures[position]))
