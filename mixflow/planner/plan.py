"""Plans: the choices for one program, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from mixflow.planner.loops import Levels
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
        levels: how deep inner loops are nested in checkpoints.
        respect: whether steps that the user has checkpointed are left out of that.
        gradients: whether inner gradients are saved.
        gradient_levels: by how many levels of a loop, the step first; 0 for all.
        products: whether first products of parameters on several devices are saved, too.
        slack: bytes that a segmented region may take beyond the least; None for no segments.
        rerun: how much of a region may be rerun for less memory, in forward passes.
    """

    fused: bool = False
    rolled: bool = False
    peeled: bool = False
    symmetric: bool = False
    transposed: bool = False
    levels: Levels = 0
    respect: bool = False
    gradients: bool = False
    gradient_levels: int = 0
    products: bool = False
    slack: int | None = None
    rerun: float = 1.0

    @property
    def rewritten(self) -> bool:
        """Whether gradients that are differentiated again are rewritten, by either rule."""
        return self.symmetric or self.transposed

    @property
    def repeats(self) -> bool:
        """Whether gradients are computed again in the second run of a step, or of a level."""
        return bool(self.levels) and (not self.gradients or self.gradient_levels > 0)

    @property
    def passes(self) -> str:
        """The pipeline, as `mixflow.compile(passes=...)` takes it."""
        if self in (Plan(), Plan(fused=True)):
            return "fuse-value-and-pullback" if self.fused else ""
        return ",".join([ROLLED if self.rolled else PREPARE, *self.parts.values()])

    @property
    def parts(self) -> dict[str, str]:
        """The passes after those that every plan begins with: name and text, in order."""
        switches = {
            "peel-inactive-step": self.peeled,
            "forward-over-reverse": self.symmetric,
            "reverse-over-forward": self.transposed,
            "checkpoint-inner-loop": bool(self.levels),
            "save-inner-gradients": self.gradients,
            "keep-first-products": self.products and not self.repeats,
            "segment-loss": self.slack is not None,
        }
        found = {name: name for name, is_on in switches.items() if is_on}
        if self.levels:
            respect = " respect=true" if self.respect else ""
            found["checkpoint-inner-loop"] += f"{{{_described(self.levels)}{respect}}}"
        if self.gradients and self.gradient_levels:
            found["save-inner-gradients"] += f"{{levels={self.gradient_levels}}}"
        if self.slack is not None:
            found["segment-loss"] += f"{{slack={self.slack} rerun={self.rerun}}}"
        return found

    def only(self, working: AbstractSet[str]) -> Plan:
        """The plan without its passes that are not among these, by name."""
        levels = self.levels if "checkpoint-inner-loop" in working else 0
        slack = self.slack if "segment-loss" in working else None
        gradients = self.gradients and "save-inner-gradients" in working
        return Plan(
            fused=self.fused,
            rolled=self.rolled and "roll-repeated-blocks" in working,
            peeled=self.peeled and "peel-inactive-step" in working,
            symmetric=self.symmetric and "forward-over-reverse" in working,
            transposed=self.transposed and "reverse-over-forward" in working,
            levels=levels,
            respect=self.respect and bool(levels),
            gradients=gradients,
            gradient_levels=self.gradient_levels if gradients else 0,
            products=self.products and "keep-first-products" in working,
            slack=slack,
            rerun=1.0 if slack is None else self.rerun,
        )


def _described(levels: Levels) -> str:
    """A nest as options of the pass that makes it."""
    if isinstance(levels, int):
        return f"levels={levels}"
    numbers = ",".join(str(number) for _, number in levels)
    return f"levels={numbers} loops=" + ",".join(f'"{name}"' for name, _ in levels)


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
    """Bytes and seconds in one figure, the less the better: 10% longer has to be a quarter less."""
    return total_bytes * seconds**3


def balanced(figures: Sequence[tuple[float, float]]) -> int:
    """The place of the plan to take where there is no budget.

    Arguments:
        figures: bytes and seconds of each plan.
    """
    bearable = SLOWEST * min(seconds for _, seconds in figures)
    allowed = [position for position, (_, seconds) in enumerate(figures) if seconds <= bearable]
    return min(allowed, key=lambda position: score(*figures[position]))
