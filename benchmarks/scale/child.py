"""What one size needs, in a process of its own: `python -m benchmarks.scale.child JOB`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax

import mixflow
from benchmarks.scale.chinchilla import EXPERT, PLAIN, Model, arguments, meta_loss, shapes
from mixflow.runtime.bench.processes import print_answer
from mixflow.runtime.measure import total_bytes

PROGRAMS = ("plain", "expert", "mixflow")


@dataclass(frozen=True)
class Job:
    """One program at one size.

    Arguments:
        program: one of `PROGRAMS`.
        model: the transformer.
        steps, tokens: T, and the length of a sequence.
        device: where it is to run.
        run: also run it once, and read the device's own peak.
    """

    program: str
    model: Model
    steps: int
    tokens: int
    device: Literal["cpu", "gpu"] = "cpu"
    run: bool = False

    def to_json(self) -> str:
        """The command-line argument."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        """Back from the command-line argument."""
        fields: dict[str, Any] = json.loads(text)
        return Job(model=Model(**fields.pop("model")), **fields)


def needs(job: Job) -> dict[str, Any]:
    """Bytes of arguments, results and temporaries by XLA; where it is run, the device's peak."""
    if job.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        # Nothing is run: the machine code need not be fast, and XLA's buffers are the same.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0"
    elif jax.default_backend() != job.device:
        return {"failed": f"there is no {job.device}: JAX runs on {jax.default_backend()} here"}
    compiled = _jitted(job).lower(*shapes(job.model, job.steps, job.tokens)).compile()
    found: dict[str, Any] = {"total_bytes": total_bytes(compiled), "peak_bytes": None}
    if job.run:
        args = arguments(job.model, job.steps, job.tokens)
        jax.block_until_ready(compiled(*args))
        stats = jax.local_devices()[0].memory_stats() or {}
        found["peak_bytes"] = stats.get("peak_bytes_in_use")
    return found


def _jitted(job: Job) -> Any:
    if job.program == "mixflow":
        return mixflow.compile(jax.value_and_grad(meta_loss(job.model)))
    # Those by hand get the XLA options that mixflow sets, as in `benchmarks.programs`.
    options = mixflow.compiler_options() or None if job.program == "expert" else None
    loss = meta_loss(job.model, EXPERT if job.program == "expert" else PLAIN)
    return jax.jit(jax.value_and_grad(loss), compiler_options=options)


if __name__ == "__main__":
    print_answer(lambda: needs(Job.from_json(sys.argv[1])))
