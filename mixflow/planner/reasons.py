"""Why a plan leaves something alone, in words."""

from __future__ import annotations

from collections.abc import Iterator

from mixflow.compiler.ir.dialects.remarks import DECLINED, Remark
from mixflow.planner.candidates import Candidates
from mixflow.planner.plan import Candidate


def declines(candidates: Candidates, chosen: Candidate) -> tuple[Remark, ...]:
    """What was left out of the chosen plan, with the reason.

    Arguments:
        candidates: the program's plans that were costed.
        chosen: the one that was taken.
    """
    unsound = [] if chosen.plan.rewritten else candidates.probe.declines
    left_out = dict.fromkeys([*unsound, *candidates.idle(chosen.plan)])
    known = [remark for remark in left_out if remark not in chosen.optimised.declines]
    reasons = [Remark("plan", DECLINED, why, "<unknown>") for why in _reasons(candidates, chosen)]
    return (*known, *reasons)


def _reasons(candidates: Candidates, chosen: Candidate) -> Iterator[str]:
    nested = candidates.facts.nested
    if nested and not candidates.device.keeps_barriers:
        yield (
            "segment-loss is left out: the jit around this function was not given "
            "mixflow.compiler_options(), without which XLA undoes segments here"
        )
    if chosen.plan != candidates.plain:
        return
    if not nested:
        yield "no gradient is differentiated again: the program is left as it is"
        return
    others = [one for one in candidates.considered if one is not chosen]
    if not others:
        yield "no pass finds anything to do: the program is left as it is"
        return
    nearest = min(others, key=lambda one: one.score)
    yield (
        "nothing pays, and the program is left as it is: the next best plan would need "
        f"{nearest.total_bytes / chosen.total_bytes:.2f} times the memory and "
        f"{nearest.seconds / chosen.seconds:.2f} times the time ({nearest.plan.passes})"
    )
