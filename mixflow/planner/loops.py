"""The loops of a program, and what each number of levels for each of them saves and reruns.

All that is arithmetic: how deep a loop is nested changes how many of its states are saved and how
often its steps run, and nothing else. So no program has to be traced to compare two nests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mixflow.compiler.analysis.nesting import choose_nest

Levels = int | tuple[tuple[str, int], ...]
"""How deep loops are nested in checkpoints: one number for all that take gradient steps themselves
(0 for not at all), or names of loops with a number for each, in the program's order."""

MOST_NAMED = 16
"""Of more loops than these, all get one number of levels: to weigh each would take longer than it
is worth, by the third power of how many there are."""


def is_deep(levels: Levels) -> bool:
    """Whether a loop is nested in more than its checkpointed steps."""
    return not isinstance(levels, int) or levels > 1


@dataclass(frozen=True)
class Loop:
    """A loop that takes gradient steps, or holds loops that do.

    Arguments:
        name: as plans call it.
        steps: its length.
        state_bytes: what a step is given; 0 where it is left to the user.
        other_bytes: what a step saves for its way back, but for the loops inside, as long as the
            step is no checkpoint.
        work: of one step, but for the loops inside, in any unit.
        takes_steps: whether it takes gradient steps itself. Then each plan checkpoints its steps.
        given: the levels that it has already, by a checkpoint of the user's: 0 or 1.
        left: whether that checkpoint is to stay.
        inside: the loops in its step.
    """

    name: str
    steps: int
    state_bytes: int
    other_bytes: int = 0
    work: float = 0.0
    takes_steps: bool = True
    given: int = 0
    left: bool = False
    inside: tuple[Loop, ...] = ()

    def walk(self) -> Iterator[Loop]:
        """This loop, then those inside, at any depth."""
        yield self
        for loop in self.inside:
            yield from loop.walk()


@dataclass(frozen=True)
class Loops:
    """All loops of a program.

    Arguments:
        outermost: those that stand in no other one, in the program's order.
    """

    outermost: tuple[Loop, ...] = ()

    @property
    def all(self) -> list[Loop]:
        """Every loop, each before those inside it."""
        return [loop for one in self.outermost for loop in one.walk()]

    @property
    def longest(self) -> int:
        """The most steps that a loop takes; 0 without a loop that could be nested."""
        return max((one.steps for one in self.all if one.takes_steps and not one.left), default=0)

    def states(self, levels: Levels) -> float:
        """The most bytes of states that are saved at once."""
        return _in_turn(self.outermost, self._depths(levels))[1]

    def work(self, levels: Levels) -> float:
        """What all steps take together that run before a step's own way back."""
        depths = self._depths(levels)
        return sum(_all_runs(one, depths) for one in self.outermost)

    def deeper(self, levels: Levels, enough: float) -> Levels | None:
        """One more level for each loop where that pays, those first where it pays most.

        Arguments:
            levels: the nest so far.
            enough: the bytes that a level has to save for which all loops run once more. For one
                that reruns a third of all work it is a third of that.

        Returns:
            None where no loop's level saves so much.
        """
        if len(self.all) > MOST_NAMED:
            more = levels + 1 if isinstance(levels, int) else levels
            return more if self._gain(levels, more) > enough else None
        depths, waiting = self._depths(levels), [one.name for one in self.all]
        while waiting:
            steps = {name: self._levels({**depths, name: depths[name] + 1}) for name in waiting}
            gains = {name: self._gain(self._levels(depths), step) for name, step in steps.items()}
            name = max(gains, key=gains.__getitem__)
            if gains[name] <= enough:
                break
            depths = self._depths(steps[name])
            waiting.remove(name)
        return None if depths == self._depths(levels) else self._levels(depths)

    def _gain(self, levels: Levels, deeper: Levels) -> float:
        """Bytes that a deeper nest saves, for each time that all loops run once more for it."""
        once = sum(map(_one_run, self.outermost))
        rerun = self.work(deeper) - self.work(levels)
        times = max(rerun / once, 0.01) if once else 1.0
        return (self.states(levels) - self.states(deeper)) / times

    def _depths(self, levels: Levels) -> dict[str, int]:
        """The number of levels of each loop."""
        if isinstance(levels, int):
            return {one.name: levels if one.takes_steps else one.given for one in self.all}
        named = dict(levels)
        return {one.name: named.get(one.name, one.given) for one in self.all}

    def _levels(self, depths: Mapping[str, int]) -> Levels:
        """What says the same in a plan: one number, where that says it."""
        said = [one for one in self.all if one.takes_steps or depths[one.name] > one.given]
        same = {depths[one.name] for one in said}
        if len(same) == 1 and all(one.takes_steps for one in said):
            return same.pop()
        return tuple((one.name, depths[one.name]) for one in said)


def _states(loop: Loop, depths: Mapping[str, int]) -> tuple[float, float]:
    """Bytes of states that a loop saves going forward, and that are alive at most going back."""
    saved, most = _in_turn(loop.inside, depths)
    depth = depths[loop.name]
    if not depth:
        saved_by_all = loop.steps * (saved + loop.other_bytes)
        return saved_by_all, saved_by_all - saved + most
    nest = choose_nest(loop.steps, depth)
    outermost = sum(lengths[0] for lengths in nest.parts)
    return loop.state_bytes * outermost, loop.state_bytes * nest.states + most


def _in_turn(loops: Sequence[Loop], depths: Mapping[str, int]) -> tuple[float, float]:
    """The same of loops that run one after the other: the first goes back last."""
    saved = most = 0.0
    for loop in loops:
        its_own, at_most = _states(loop, depths)
        most = max(most, saved + at_most)
        saved += its_own
    return saved, most


def _one_run(loop: Loop) -> float:
    """The work of running a loop forward once."""
    return loop.steps * (loop.work + sum(map(_one_run, loop.inside)))


def _all_runs(loop: Loop, depths: Mapping[str, int]) -> float:
    """The work of all its forward runs but those of a step that goes back next."""
    inside = sum(_all_runs(one, depths) for one in loop.inside)
    depth = depths[loop.name]
    if not depth:
        return loop.steps * (loop.work + inside)
    nest = choose_nest(loop.steps, depth)
    step = loop.work + sum(map(_one_run, loop.inside))
    return nest.forwards * step + loop.steps * inside
