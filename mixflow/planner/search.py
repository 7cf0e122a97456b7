"""The planner: which passes a program gets, with which options.

A plan is a pipeline's text, so that it can be read, kept and given to `passes=`. Plans are run
through the passes, and what comes out is swept for liveness and costed; XLA is asked last, by
the runtime, and of the chosen plan only.
"""

from __future__ import annotations

from dataclasses import replace

from mixflow.planner.candidates import Candidates
from mixflow.planner.facts import Facts
from mixflow.planner.loops import is_deep
from mixflow.planner.plan import SLOWEST, Candidate, Plan, balanced, score

FEW_STEPS = 4
"""Of so few steps, peeling one saves a quarter of the second derivatives or more: it is done
without asking what memory that takes."""

NO_SLOWER = 1.02
"""What a plan may take of the time of a program with checkpoints of the user's, who has chosen."""

FAR_BELOW = 0.4
"""The two rules alone take 0.66 of the memory of a checkpointed step or more, and segments a fifth
of the time at most: where segments come to 0.66 / 1.2³ = 0.38 of that memory, they are better."""

LEVEL_PAYS = 1 / 5
"""One more level of a loop takes 1.07 of the time or more: it has to save 1 - 1 / 1.07³ of all
bytes, which is a fifth."""

DEEPER = 1 / 32
"""For a budget, a level is worth trying that saves so much: the least is to be that near."""

STATES = 1 / 4
"""Where the states that a loop saves are so much of all bytes, plain JAX may take less: it saves
what a step's derivative reads, which can be less than what the step is given."""

SAVED_AT_LEAST = 1 / 4
"""Plain JAX takes at least so much of what the forward passes through the inner losses save, as the
IR counts it. XLA computes some of that again in its fusions, and where a condition stops gradients
(`examples/truncated.py`) it saves that of some steps alone: 0.28 of it. All other examples take 1.3
times as much or more."""

RERUN_AT_MOST = 3 / 4
"""Plain JAX takes at least so much of the time of a plan that runs each step a second time, which
is one pass of four."""


class Planner:
    """Enumerates the plans of one program that may be best, and takes one.

    Arguments:
        candidates: the program's plans, and what each costs.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.candidate = candidates.candidate

    @property
    def facts(self) -> Facts:
        """What there is to plan."""
        return self.candidates.facts

    def best(self, budget: int | None = None) -> list[Candidate]:
        """The plan to take, and the one that needs the least memory if that is another.

        Arguments:
            budget: bytes for arguments, results and temporaries; None for the best of both.
        """
        if not self.facts.nested and budget is None:
            return [self.candidate(self.candidates.plain)]
        self._explore()
        if budget is None:
            return [self._balanced]
        self._explore_widely()
        self._fit(budget)
        least = min(self.candidates.considered, key=lambda one: one.total_bytes)
        within = [one for one in self.candidates.considered if one.total_bytes <= budget] or [least]
        within = self._preferred(within)
        fastest = _simplest(min(within, key=lambda one: one.seconds), within)
        return [fastest] if fastest is least else [fastest, least]

    @property
    def _balanced(self) -> Candidate:
        candidates = self._bargains(self._preferred(self.candidates.considered))
        best = candidates[balanced([one.figures for one in candidates])]
        return _simplest(best, candidates)

    def _preferred(self, candidates: list[Candidate]) -> list[Candidate]:
        """Of plans for several devices, those that do not exchange all for a gradient again.

        All of them, if only such a plan takes less memory than plain JAX.
        """
        if not self.candidates.sharded or not self.facts.rewritable:
            return candidates
        return [one for one in candidates if not one.plan.repeats] or candidates

    def _bargains(self, candidates: list[Candidate]) -> list[Candidate]:
        """Of plans for a program that the user has checkpointed, those that are no worse."""
        if not self.facts.checkpointed:
            return candidates
        theirs = self.candidate(self.candidates.plain)
        return [
            one
            for one in candidates
            if one.total_bytes <= theirs.total_bytes and one.seconds <= NO_SLOWER * theirs.seconds
        ] or [theirs]

    def front(self, budget: int | None = None) -> list[Candidate]:
        """The plans that no other one beats in both memory and time, the best first."""
        self.best(budget)
        self._explore_widely()
        costed = self.candidates.considered
        front = [one for one in costed if not any(map(one.is_beaten, costed))]
        return sorted(front, key=lambda one: one.score)

    def _explore(self) -> None:
        """Cost what may be best, one choice after the other: each costs a trace of the program."""
        if self.facts.steps:
            self.candidate(self.step)
        if self.candidates.device.keeps_barriers:
            self.candidate(replace(self._rewritten, slack=0))
        if not self._is_far_below(self.step):
            self.candidate(self._rewritten)
        self._explore_loops()
        if self.facts.peelable and self._balanced.plan.levels:
            # Of many steps the first is not worth a second program in each plan that is tried.
            self.candidate(replace(self._balanced.plan, peeled=True))
        if self._plain_may_be_best():
            self.candidate(self.candidates.plain)

    def _explore_widely(self) -> None:
        """Cost what is not the best of both, but may be the fastest in a budget, or the least."""
        if self.facts.nested:
            self.candidate(self._rewritten)
        self.candidate(self.candidates.plain)
        if self.facts.rewritable and self.candidates.device.keeps_barriers:
            # What least memory takes: the gradients of all steps may be more than all the rest.
            self.candidate(replace(self._rewritten, gradients=False, products=False, slack=0))
        self._explore_loops(deep=True)
        if self._balanced.plan.products:
            self.candidate(replace(self._balanced.plan, products=False))

    @property
    def step(self) -> Plan:
        """A checkpointed step, and nothing else; what JAX does, where there is no step."""
        if not self.facts.steps:
            return self.candidates.plain
        return Plan(rolled=self.candidates.rolled, levels=1, respect=self.candidates.wishes.respect)

    @property
    def _rewritten(self) -> Plan:
        """All that is sound, without segments."""
        facts = self.facts
        step = replace(self.step, peeled=facts.peelable and facts.steps <= FEW_STEPS)
        if not facts.rewritable:
            return step
        step = replace(step, rolled=self.candidates.rolled)
        return replace(self._mixed(step), gradients=facts.steps > 0, products=facts.distributed)

    def _mixed(self, plan: Plan) -> Plan:
        """A plan in which each gradient gets the best rule that is allowed for it."""
        return replace(plan, symmetric=self.facts.symmetric, transposed=self.facts.transposed)

    def _is_far_below(self, step: Plan) -> bool:
        """Whether segments took so much from a checkpointed step that none can be better."""
        before = self.candidates.known(step)
        return before is not None and self._balanced.total_bytes < FAR_BELOW * before.total_bytes

    def _explore_loops(self, *, deep: bool = False) -> None:
        """Nest loops deeper while that saves enough of the whole.

        Arguments:
            deep: also where it takes more time than the bytes are worth.
        """
        rerun = replace(self._balanced.plan, gradients=False, gradient_levels=0)
        mixed = self._mixed(rerun)
        self._nest(rerun, deep=deep)
        if deep:
            self._nest(mixed, deep=deep)
        if self.facts.rewritable:
            self._nest(replace(mixed, gradients=True), deep=deep)
            self._nest(replace(mixed, gradients=True, gradient_levels=1), deep=deep)
        if is_deep(self._balanced.plan.levels) and self.candidates.device.keeps_barriers:
            # What the loop saves has changed, and with it what segments are worth.
            other = 0 if self._balanced.plan.slack is None else None
            self.candidate(replace(self._balanced.plan, slack=other))
            if self._balanced.plan.slack == 0:
                # The step is a large part of what is left; to run more of it again may be worth it.
                self.candidate(replace(self._balanced.plan, rerun=1.5))

    def _nest(self, plan: Plan, *, deep: bool) -> None:
        """Cost a plan with one nest of its loops after the other, each deeper."""
        levels, last = 1, self._balanced
        enough = DEEPER if deep else LEVEL_PAYS
        while more := self.facts.loops.deeper(levels, enough * last.total_bytes):
            deeper = replace(plan, levels=more)
            if plan.gradient_levels and not self._gradients_take(deeper, enough):
                return
            before = self.candidates.known(replace(plan, levels=levels))
            levels, last = more, self.candidate(deeper)
            if before is not None and last.total_bytes >= before.total_bytes:
                return
            if not deep and self._balanced is not last:
                return

    def _gradients_take(self, plan: Plan, enough: float) -> bool:
        """Whether gradients that all levels save take so much of the whole, as far as is known."""
        saved = self.candidates.known(replace(plan, gradient_levels=0))
        others = [one for one in self.candidates.considered if one.plan.levels == plan.levels]
        rerun = [one.total_bytes for one in others if not one.plan.gradients]
        if saved is None or not rerun:
            return False
        return saved.total_bytes - min(rerun) > enough * self._balanced.total_bytes

    def _plain_may_be_best(self) -> bool:
        """Whether the least that plain JAX may take is better than the best plan so far.

        Where a step is checkpointed, plain JAX takes no less memory than that; but it may where a
        step saves less than the state that it is given.
        """
        step, best = self.candidates.known(self.step), self._balanced
        held = SAVED_AT_LEAST * self.facts.residual_bytes
        states = self.facts.loops.states(best.plan.levels or 1)
        if step is not None and states <= STATES * best.total_bytes:
            held = max(held, step.total_bytes)
        return score(held, RERUN_AT_MOST * (step or best).seconds) <= best.score

    def _fit(self, budget: int) -> None:
        """Cost what comes near the budget: more slack where there is room, more reruns if not."""
        least = min(self.candidates.considered, key=lambda one: one.total_bytes)
        if least.total_bytes > budget and least.plan.slack is not None:
            self.candidate(replace(least.plan, slack=0, rerun=1.5))
            self.candidate(replace(least.plan, slack=0, rerun=3.0))
        within = [one for one in self.candidates.considered if one.total_bytes <= budget]
        bearable = SLOWEST * min((one.seconds for one in within), default=0.0)
        for one in within:
            room = int(budget - one.total_bytes)
            if one.plan.slack == 0 and room > budget / 20 and one.seconds <= bearable:
                self.candidate(replace(one.plan, slack=room))


def _simplest(best: Candidate, candidates: list[Candidate]) -> Candidate:
    """The one that does the least to the program, of those that are as good as the best."""
    alike = [one for one in candidates if one.is_as_good(best)]
    return min(alike, key=lambda one: len(one.plan.passes))
