"""The planner's estimate of the peak of temporaries beside XLA's figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jax

import mixflow
from benchmarks.reference import Size, arguments, meta_loss
from mixflow.compiler.analysis.liveness import peak_memory
from mixflow.report.report import CHECKPOINTED_STEP
from mixflow.runtime.measure import measure

_BEFORE = "canonicalize,cse,fuse-value-and-pullback,canonicalize"
_AFTER = "forward-over-reverse,checkpoint-inner-loop,save-inner-gradients"
PLANS = {
    "plain JAX": "",
    "plain JAX, checkpointed step": CHECKPOINTED_STEP,
    "forward over reverse": f"{_BEFORE},forward-over-reverse",
    "and a checkpointed step that saves gradients": f"{_BEFORE},{_AFTER}",
    "and segments": f"{_BEFORE},{_AFTER},segment-loss",
    "and the first step peeled": f"{_BEFORE},peel-inactive-step,{_AFTER},segment-loss",
}


def estimates(sizes: list[Size], task: str) -> Iterator[dict[str, Any]]:
    """For each size and each of `PLANS`: estimate and truth in bytes, and their ratio."""
    for size in sizes:
        loss = jax.value_and_grad(meta_loss(size, task))
        args = arguments(size, task)
        for name, passes in PLANS.items():
            jax.clear_caches()
            compiled = mixflow.compile(loss, passes=passes)
            estimate = peak_memory(compiled.optimised(*args).jaxpr).bytes
            truth = measure(compiled, args, {}, run=False).measurement.temp_bytes
            yield {
                "size": asdict(size),
                "plan": name,
                "estimated_bytes": estimate,
                "temp_bytes": truth,
                "ratio": estimate / truth,
            }
