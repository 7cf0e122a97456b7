"""What the planner knows of a device: how fast it computes and moves bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mixflow.compiler.analysis.costs import Cost


@dataclass(frozen=True)
class Device:
    """Arguments:
    flops: floating-point operations per second that matrix products reach.
    transcendentals: exponentials, sines and their like per second, on as much of the device.
    bandwidth: bytes per second between the processor and its memory.
    first_touch: bytes of fresh memory per second. On a CPU each page is faulted in and cleared
        when it is first written to, about 4 µs for 4 KiB; accelerators have a pool.
    keeps_barriers: whether straight-line checkpoints survive the compiler. Without, they would
        cost their recomputation's time and save nothing.
    """

    flops: float
    transcendentals: float
    bandwidth: float
    first_touch: float = math.inf
    keeps_barriers: bool = True

    def seconds(self, cost: Cost, held: float) -> float:
        """Time for a program, as if nothing overlapped; what nobody knows takes no time.

        Arguments:
            cost: what it computes and moves.
            held: bytes at the peak.
        """
        computing = (cost.flops or 0.0) / self.flops
        computing += (cost.transcendentals or 0.0) / self.transcendentals
        return computing + (cost.bytes or 0.0) / self.bandwidth + held / self.first_touch


CPU = Device(flops=1e11, transcendentals=5e8, bandwidth=2e10, first_touch=1e9)
GPU = Device(flops=6e13, transcendentals=4e12, bandwidth=2e12)
TPU = Device(flops=1e14, transcendentals=4e12, bandwidth=1e12)

_BY_PLATFORM = {"cpu": CPU, "gpu": GPU, "cuda": GPU, "rocm": GPU, "tpu": TPU}


def device_of(platform: str) -> Device:
    """Typical figures for a platform. Plans are compared by ratios, so orders of magnitude do."""
    return _BY_PLATFORM.get(platform, GPU)
