"""A program's plans: what the passes of each make of it, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from jax.extend.core import ClosedJaxpr

from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.analysis.costs import program_cost
from mixflow.compiler.capture.capture import Captured
from mixflow.compiler.derivative.spelling import with_reverse_pass
from mixflow.compiler.ir.dialects.remarks import Remark
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.jaxprs.sizes import array_bytes
from mixflow.compiler.jaxprs.subprograms import holds_derivative
from mixflow.compiler.memory.liveness import peak_memory
from mixflow.planner.device import Device
from mixflow.planner.facts import Facts, facts_of
from mixflow.planner.pipeline import PREPARE, Optimised, Program, optimise, parse_passes
from mixflow.planner.plan import Candidate, Plan, Wishes


class Candidates:
    """The plans of one captured program, each costed once.

    A plan says what is wished for. Passes of it that find nothing to do are left out: two plans
    that come to the same program are one candidate, and a pipeline's text has no idle pass.

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
        self.device = device
        self.sharded = sharded
        self.wishes = wishes or Wishes()
        self._captured = captured
        self._program = Program(captured, differentiated=differentiated)
        self._differentiated = differentiated
        self._loss = loss
        self._optimised: dict[Plan, Optimised] = {}
        self._at_work: dict[Plan, Plan] = {}
        self._costed: dict[Plan, Candidate] = {}

    # --- what there is ---------------------------------------------------------------------------

    @cached_property
    def plain(self) -> Plan:
        """What JAX does by itself: nothing, but that a value comes with its gradient."""
        return Plan(fused=holds_derivative(self._captured.jaxpr.jaxpr))

    @cached_property
    def rolled(self) -> bool:
        """Whether there is code to be rolled. Every plan does it then, but the program as it is.

        Not where arguments are in parts on several devices: they would exchange more than parts to
        stack some up.
        """
        may_roll = self.wishes.roll and not self.sharded
        return may_roll and self.plain.fused and self._program.repeats

    @cached_property
    def probe(self) -> Optimised:
        """The program with every gradient marked that may be, for what there is to plan."""
        return self.optimised(Plan(rolled=self.rolled, symmetric=True, transposed=True))

    @cached_property
    def facts(self) -> Facts:
        """What there is to plan."""
        peeling = self.device.keeps_barriers
        return facts_of(self.probe.module, peeling=peeling, respect=self.wishes.respect)

    @property
    def considered(self) -> list[Candidate]:
        """All that was costed so far."""
        return list(self._costed.values())

    # --- plans -----------------------------------------------------------------------------------

    def optimised(self, plan: Plan) -> Optimised:
        """The program after a plan's passes."""
        if plan not in self._optimised:
            self._optimised[plan] = self._program.optimised(parse_passes(plan.passes))
        return self._optimised[plan]

    def candidate(self, plan: Plan) -> Candidate:
        """A plan, without what is idle in it, and its costs."""
        plan = self._without_idle(plan)
        if plan not in self._costed:
            self._costed[plan] = self._cost(plan)
        return self._costed[plan]

    def known(self, plan: Plan) -> Candidate | None:
        """A plan with its costs, if it was costed before."""
        return self._costed.get(self._at_work.get(plan, plan))

    def idle(self, plan: Plan) -> Iterator[Remark]:
        """What passes said that are not in a plan because they found nothing to do."""
        for wish, at_work in self._at_work.items():
            idle = wish.parts.keys() - at_work.parts.keys() - plan.parts.keys()
            yield from (one for one in self.optimised(wish).declines if one.by in idle)

    def _without_idle(self, plan: Plan) -> Plan:
        if plan not in self._at_work:
            at_work = {remark.by for remark in self.optimised(plan).rewrites}
            if self.sharded or plan.products:
                # On several devices it is the plan's word that gradients are not computed again.
                at_work.add("save-inner-gradients")
            found = plan.only(at_work)
            self._at_work[plan] = self.plain if found == Plan() else found
            if found.parts and found != plan and found.rolled == plan.rolled:
                idle = plan.parts.keys() - found.parts.keys()
                self._optimised.setdefault(found, self._optimised[plan].without(idle))
        return self._at_work[plan]

    # --- costs -----------------------------------------------------------------------------------

    def _cost(self, plan: Plan) -> Candidate:
        optimised = self.optimised(plan)
        program = self._measured(optimised.jaxpr)
        cost = program_cost(program)
        held = sum(map(array_bytes, (*program.in_avals, *program.out_avals)))
        total = held + peak_memory(program).bytes
        seconds = self.device.seconds(cost, total)
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
