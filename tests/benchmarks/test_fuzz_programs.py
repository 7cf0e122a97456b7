"""Random programs with fixed numbers, judged against plain JAX, under plans drawn at random.

They are run one operation at a time, and the planner is asked for every fourth: so it takes one or
two seconds a program. Each version of JAX has programs of its own. `python -m benchmarks fuzz` runs
as many as there is time for.
"""

from __future__ import annotations

import jax
import pytest

from benchmarks.fuzz.program import standalone
from benchmarks.fuzz.run import judged
from benchmarks.fuzz.stepped import run_stepped

FIRST = 1000 * jax.__version_info__[1]
CHUNK = 8
CHUNKS = 8


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_programs(chunk: int) -> None:
    start = FIRST + chunk * CHUNK
    for seed in range(start, start + CHUNK):
        one = judged(seed, run_stepped)
        assert one.fault is None, (
            f"program {seed}: {one.fault.kind}: {one.fault.why}\n"
            + standalone(one.program.source, one.fault.passes)
        )
