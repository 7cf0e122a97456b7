"""What a report is about: figures before and after, rewrites, declines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr
from xdsl.dialects.builtin import ModuleOp

from mixflow.compiler.ir.dialects.remarks import Remark
from mixflow.planner.front import Offer
from mixflow.runtime.measure import Measurement, Program
from mixflow.runtime.verification.results import Verified


@dataclass(frozen=True)
class Programs:
    """The programs behind the figures: compiled, as JAX lowers them, and as IR.

    Arguments:
        before, after: compiled.
        optimised: the `CompiledFunction` of the second, for whoever exports it.
        closed_before, closed_after: as JAX lowers them.
        ir_before, ir_after: the IR's text.
        module: the IR after the passes; None where it could not hold the program.
    """

    before: Program
    after: Program
    optimised: Any
    closed_before: ClosedJaxpr
    closed_after: ClosedJaxpr
    ir_before: str
    ir_after: str
    module: ModuleOp | None


@dataclass(frozen=True)
class Findings:
    """What mixflow did to a program, as data.

    Arguments:
        entry: the function's name.
        target: what of it was measured, in words.
        jax: JAX's version.
        backend: the platform that the figures are for.
        before: figures of plain JAX.
        after: figures of the optimised program.
        checkpointed: figures of plain JAX with a checkpointed step; None without an inner loop.
        plan: the pipeline that the program was given; `fuse-value-and-pullback` or empty where it
            was left as it is.
        front: what a memory budget would buy, by estimate; none where nothing was planned.
        rewrites: what passes did.
        declined: what was left alone, and why.
        verified: the comparison of results; None where none was made.
        programs: the compiled programs, for whoever writes them to files.
    """

    entry: str
    target: str
    jax: str
    backend: str
    before: Measurement
    after: Measurement
    checkpointed: Measurement | None
    plan: str
    front: tuple[Offer, ...]
    rewrites: tuple[Remark, ...]
    declined: tuple[Remark, ...]
    verified: Verified | None
    programs: Programs = field(repr=False)

    @property
    def rows(self) -> list[tuple[str, Measurement]]:
        """The measured programs, by name."""
        middle = [("plain JAX, checkpointed step", self.checkpointed)] if self.checkpointed else []
        return [("plain JAX", self.before), *middle, ("mixflow", self.after)]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `docs/command-line.md` lists the fields."""
        checkpointed = None if self.checkpointed is None else self.checkpointed.to_dict()
        verified = None if self.verified is None else vars(self.verified)
        return {
            "entry": self.entry,
            "target": self.target,
            "jax": self.jax,
            "backend": self.backend,
            "before": self.before.to_dict(),
            "checkpointed_step": checkpointed,
            "after": self.after.to_dict(),
            "plan": self.plan,
            "front": [
                {"total_bytes": o.total_bytes, "time": o.time, "plan": o.passes, "is": o.names}
                for o in self.front
            ],
            "rewrites": [{"pass": r.by, "at": r.at, "what": r.text} for r in self.rewrites],
            "declined": [{"pass": r.by, "at": r.at, "why": r.text} for r in self.declined],
            "verified": verified,
        }
