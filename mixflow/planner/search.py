"""The planner: which passes a program gets, with which options.

A plan is a pipeline's text, so that it can be read, kept and given to `passes=`. Plans are run
through the passes, and what comes out is swept for liveness and costed; XLA is asked last, by
the runtime, and of the chosen plan only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from jax.extend.core import ClosedJaxpr

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.analysis.costs import program_cost
from mixflow.compiler.analysis.nesting import choose_nest
from mixflow.compiler.capture.capture import Captured
from mixflow.compiler.derivative.spelling import with_reverse_pass
from mixflow.compiler.ir.dialects.remarks import DECLINED, Remark
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.jaxprs.sizes import array_bytes
from mixflow.compiler.jaxprs.subprograms import holds_derivative
from mixflow.compiler.memory.liveness import peak_memory
from mixflow.planner.device import Device
from mixflow.planner.facts import Facts, facts_of
from mixflow.planner.pipeline import PREPARE, Optimised, Program, optimise, parse_passes
from mixflow.planner.plan import SLOWEST, Candidate, Plan, Wishes, balanced, score

FEW_STEPS = 4
"""Of so few steps, peeling one saves a quarter of the second derivatives or more: it is done
without asking what memory that takes."""

NO_SLOWER = 1.02
"""What a plan may take of the time of a program with checkpoints of the user's, who has chosen."""

FAR_BELOW = 0.4
"""Forward over reverse alone does not get so far below the memory of a checkpointed step."""

STATES = 4
"""A loop is nested deeper while the states that it saves are more than one in so many bytes of all.
A level takes up to 1.3 times the time, so it has to save an eighth of the bytes (`plan.score`), and
it leaves half of the states or less: half of a quarter is an eighth."""

SAVED_AT_LEAST = 1 / 4
"""Plain JAX takes at least so much of what the forward passes through the inner losses save, as the
IR counts it. XLA computes some of that again in its fusions, and where a condition stops gradients
(`examples/truncated.py`) it saves that of some steps alone: 0.28 of it. All other examples take 1.3
times as much or more."""

RERUN_AT_MOST = 3 / 4
"""Plain JAX takes at least so much of the time of any plan: a plan that checkpoints each step runs
it a second time, one pass of four."""

WELL_BEATEN = 0.8
"""A plan with at most so much of a checkpointed step's score beats plain JAX as well. That step
takes at most 4/3 of plain JAX's time, so plain JAX's score is at least √(3/4) = 0.87 of it."""


class Planner:
    """Enumerates and costs the plans of one captured program.

    Arguments:
        captured: the program.
        differentiated: whether somebody may differentiate it from outside.
        device: where it is to run.
        sharded: whether several devices have parts of its arguments.
        loss: whether it is a meta-loss: a scalar, or a scalar with auxiliary data.
        wishes: the user's.
    """

    def __init__(
        self,
        captured: Captured,
        *,
        differentiated: bool,
        device: Device,
        sharded: bool = False,
        loss: bool = False,
        wishes: Wishes | None = None,
    ) -> None:
        self._captured = captured
        self._program = Program(captured, differentiated=differentiated)
        self._differentiated = differentiated
        self._device = device
        self._sharded = sharded
        self._loss = loss
        self._wishes = wishes or Wishes()
        self._costed: dict[Plan, Candidate] = {}

    def optimised(self, plan: Plan) -> Optimised:
        """The program after a plan's passes."""
        return self._program.optimised(parse_passes(plan.passes))

    @cached_property
    def _probe(self) -> Optimised:
        """The program with every gradient marked that may be, for what there is to plan."""
        return self.optimised(Plan(rolled=self._rolled, symmetric=True, transposed=True))

    @cached_property
    def _rolled(self) -> bool:
        """Whether there is code to be rolled. Every plan does it then, but the program as it is.

        Not where arguments are in parts on several devices: they would exchange more than parts to
        stack some up.
        """
        may_roll = self._wishes.roll and not self._sharded
        return may_roll and self._plain.fused and self._program.repeats

    @cached_property
    def facts(self) -> Facts:
        """What there is to plan."""
        peeling = self._device.keeps_barriers
        return facts_of(self._probe.module, peeling=peeling, respect=self._wishes.respect)

    def candidate(self, plan: Plan) -> Candidate:
        """A plan with its costs."""
        if plan not in self._costed:
            self._costed[plan] = self._cost(plan)
        return self._costed[plan]

    @property
    def considered(self) -> list[Candidate]:
        """All that was costed so far."""
        return list(self._costed.values())

    def _cost(self, plan: Plan) -> Candidate:
        optimised = self.optimised(plan)
        program = self._measured(optimised.jaxpr)
        cost = program_cost(program)
        held = sum(map(array_bytes, (*program.in_avals, *program.out_avals)))
        total = held + peak_memory(program).bytes
        seconds = self._device.seconds(cost, total)
        return Candidate(plan, optimised, total, seconds)

    def _measured(self, closed: ClosedJaxpr) -> ClosedJaxpr:
        """The program whose cost counts: its gradient, where all there is to gain is in that."""
        return with_reverse_pass(closed) if self._is_reversed else closed

    @cached_property
    def _is_reversed(self) -> bool:
        """Whether the cost that counts is that of a gradient taken outside of the program.

        Not where the program holds reverse over reverse of its own and is no meta-loss: it is a
        meta-gradient then, and is just called.
        """
        if not self._differentiated or self._loss:
            return self._differentiated
        module = optimise(self._captured, parse_passes(PREPARE), differentiated=False).module
        return module is None or not find_activity(main_function(module)).pullbacks

    # --- the search ----------------------------------------------------------------------------

    def best(self, budget: int | None = None) -> list[Candidate]:
        """The plan to take, and the one that needs the least memory if that is another.

        Arguments:
            budget: bytes for arguments, results and temporaries; None for the best of both.
        """
        if not self.facts.nested and budget is None:
            return [self.candidate(self._plain)]
        self._explore()
        if budget is None:
            return [self._balanced]
        self._explore_widely()
        self._fit(budget)
        least = min(self.considered, key=lambda one: one.total_bytes)
        within = [one for one in self.considered if one.total_bytes <= budget] or [least]
        within = self._preferred(within)
        fastest = _simplest(min(within, key=lambda one: one.seconds), within)
        return [fastest] if fastest is least else [fastest, least]

    @property
    def _balanced(self) -> Candidate:
        candidates = self._bargains(self._preferred(self.considered))
        best = candidates[balanced([one.figures for one in candidates])]
        return _simplest(best, candidates)

    def _preferred(self, candidates: list[Candidate]) -> list[Candidate]:
        """Of plans for several devices, those that do not exchange all for a gradient again.

        All of them, if only such a plan takes less memory than plain JAX.
        """
        if not self._sharded or not self.facts.rewritable:
            return candidates
        return [one for one in candidates if not one.plan.repeats] or candidates

    def _bargains(self, candidates: list[Candidate]) -> list[Candidate]:
        """Of plans for a program that the user has checkpointed, those that are no worse."""
        if not self.facts.checkpointed:
            return candidates
        theirs = self.candidate(self._plain)
        return [
            one
            for one in candidates
            if one.total_bytes <= theirs.total_bytes and one.seconds <= NO_SLOWER * theirs.seconds
        ] or [theirs]

    def front(self, budget: int | None = None) -> list[Candidate]:
        """The plans that no other one beats in both memory and time, the best first."""
        self.best(budget)
        self._explore_widely()
        front = [one for one in self.considered if not any(map(one.is_beaten, self.considered))]
        return sorted(front, key=lambda one: one.score)

    def _explore(self) -> None:
        """Cost what may be best, one choice after the other: each costs a trace of the program."""
        if self.facts.steps:
            self.candidate(self._step)
        if self._device.keeps_barriers:
            self.candidate(replace(self._rewritten, slack=0))
        if not self._is_far_below(self._step):
            self.candidate(self._rewritten)
        self._explore_loop()
        if self.facts.peelable and self._balanced.plan.levels:
            # Of many steps the first is not worth a second program in each plan that is tried.
            self.candidate(replace(self._balanced.plan, peeled=True))
        if self._plain_may_be_best():
            self.candidate(self._plain)

    def _explore_widely(self) -> None:
        """Cost what is not the best of both, but may be the fastest in a budget, or the least."""
        if self.facts.nested:
            self.candidate(self._rewritten)
        self.candidate(self._plain)
        if self.facts.rewritable and self._device.keeps_barriers:
            # What least memory takes: the gradients of all steps may be more than all the rest.
            self.candidate(replace(self._rewritten, gradients=False, products=False, slack=0))
        self._explore_loop(deep=True)
        if self._balanced.plan.products:
            self.candidate(replace(self._balanced.plan, products=False))

    @cached_property
    def _plain(self) -> Plan:
        """What JAX does by itself: nothing, but that a value comes with its gradient."""
        return Plan(fused=holds_derivative(self._captured.jaxpr.jaxpr))

    @property
    def _step(self) -> Plan:
        """A checkpointed step, and nothing else; what JAX does, where there is no step."""
        if not self.facts.steps:
            return self._plain
        return Plan(rolled=self._rolled, levels=1, respect=self._wishes.respect)

    @property
    def _rewritten(self) -> Plan:
        """All that is sound, without segments."""
        facts = self.facts
        step = replace(self._step, peeled=facts.peelable and facts.steps <= FEW_STEPS)
        if not facts.rewritable:
            return step
        step = replace(step, rolled=self._rolled)
        return replace(self._mixed(step), gradients=facts.steps > 0, products=facts.distributed)

    def _mixed(self, plan: Plan) -> Plan:
        """A plan in which each gradient gets the best rule that is allowed for it."""
        return replace(plan, symmetric=self.facts.symmetric, transposed=self.facts.transposed)

    def _is_far_below(self, step: Plan) -> bool:
        """Whether segments took so much from a checkpointed step that none can be better."""
        before = self._costed.get(step)
        return before is not None and self._balanced.total_bytes < FAR_BELOW * before.total_bytes

    def _explore_loop(self, *, deep: bool = False) -> None:
        """Nest the loop deeper while the states that it saves are a good part of the whole.

        Arguments:
            deep: also where the level before was not the best of both.
        """
        levels, kinds = 1, {False, self.facts.rewritable}
        while kinds and self._states_are_much(levels):
            levels += 1
            if self._state_bytes(levels) == self._state_bytes(levels - 1):
                return  # as deep as it goes: most of what is left are states, and not segments'
            best = self._balanced
            plan = replace(self._mixed(best.plan), levels=levels)
            kinds = {saved for saved in kinds if self._nests_well(replace(plan, gradients=saved))}
            if self._balanced is best and not deep:
                break
        if levels > 1 and self._device.keeps_barriers:
            # What the loop saves has changed, and with it what segments are worth.
            other = 0 if self._balanced.plan.slack is None else None
            self.candidate(replace(self._balanced.plan, slack=other))
            if self._balanced.plan.slack == 0:
                # The step is a large part of what is left; to run more of it again may be worth it.
                self.candidate(replace(self._balanced.plan, rerun=1.5))

    def _nests_well(self, plan: Plan) -> bool:
        """Whether a plan takes less memory than all with fewer levels that save as much."""
        shallower = [
            one.total_bytes
            for one in self.considered
            if one.plan.gradients == plan.gradients and one.plan.levels < plan.levels
        ]
        return self.candidate(plan).total_bytes < min(shallower, default=math.inf)

    def _state_bytes(self, levels: int) -> float:
        """Bytes of the states that the inner loop saves at once, nested so deep."""
        steps = self.facts.steps
        if not steps:
            return 0.0
        return self.facts.state_bytes / steps * choose_nest(steps, levels).states

    def _states_are_much(self, levels: int) -> bool:
        """Whether those states are a good part of what the best plan so far takes."""
        return self._state_bytes(levels) > self._balanced.total_bytes / STATES

    def _plain_may_be_best(self) -> bool:
        """Not where a checkpointed step, at most a third slower than plain, is well beaten.

        But plain JAX may save less of a step than the state that it is given.
        """
        step, best = self._costed.get(self._step), self._balanced
        least = SAVED_AT_LEAST * self.facts.residual_bytes
        if score(least, RERUN_AT_MOST * best.seconds) > best.score:
            return False
        if step is None or self._states_are_much(max(best.plan.levels, 1)):
            return True
        return best.score > WELL_BEATEN * step.score

    def _fit(self, budget: int) -> None:
        """Cost what comes near the budget: more slack where there is room, more reruns if not."""
        least = min(self.considered, key=lambda one: one.total_bytes)
        if least.total_bytes > budget and least.plan.slack is not None:
            self.candidate(replace(least.plan, slack=0, rerun=1.5))
            self.candidate(replace(least.plan, slack=0, rerun=3.0))
        within = [one for one in self.considered if one.total_bytes <= budget]
        bearable = SLOWEST * min((one.seconds for one in within), default=0.0)
        for one in within:
            room = int(budget - one.total_bytes)
            if one.plan.slack == 0 and room > budget / 20 and one.seconds <= bearable:
                self.candidate(replace(one.plan, slack=room))

    def declines(self, chosen: Candidate) -> tuple[Remark, ...]:
        """What was left out of the chosen plan, with the reason."""
        unsound = [] if chosen.plan.rewritten else self._probe.declines
        known = [remark for remark in unsound if remark not in chosen.optimised.declines]
        reasons = [Remark("plan", DECLINED, why, "<unknown>") for why in self._reasons(chosen)]
        return (*known, *reasons)

    def _reasons(self, chosen: Candidate) -> Iterator[str]:
        if self.facts.nested and not self._device.keeps_barriers:
            yield (
                "segment-loss is left out: the jit around this function was not given "
                "mixflow.compiler_options(), without which XLA undoes segments here"
            )
        if chosen.plan != self._plain:
            return
        if not self.facts.nested:
            yield "no gradient is differentiated again: the program is left as it is"
            return
        others = [one for one in self.considered if one is not chosen and one.optimised.rewrites]
        if not others:
            yield "no pass finds anything to do: the program is left as it is"
            return
        nearest = min(others, key=lambda one: one.score)
        yield (
            "nothing pays, and the program is left as it is: the next best plan would need "
            f"{nearest.total_bytes / chosen.total_bytes:.2f} times the memory and "
            f"{nearest.seconds / chosen.seconds:.2f} times the time ({nearest.plan.passes})"
        )


def _simplest(best: Candidate, candidates: list[Candidate]) -> Candidate:
    """The one that does the least to the program, of those that are as good as the best."""
    alike = [one for one in candidates if one.is_as_good(best)]
    return min(alike, key=lambda one: len(one.plan.passes))
