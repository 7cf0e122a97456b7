"""CPU seconds of programs that run in turn: what else the machine does then slows both down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


def cpu_ratio(one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of one program's run for 1 of another's; the fastest of some rounds counts."""
    seconds = [cpu_seconds(run) for _ in range(rounds) for run in (one, other)]
    return min(seconds[::2]) / min(seconds[1::2])


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of one run, on all cores together."""
    start = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - start
