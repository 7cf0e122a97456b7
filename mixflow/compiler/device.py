"""What the planner knows of a device: how fast it computes and moves bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Arguments:
    flops: floating-point operations per second that matrix products reach.
    bandwidth: bytes per second between the processor and its memory.
    keeps_barriers: whether straight-line checkpoints survive the compiler. Without, they would
        cost their recomputation's time and save nothing.
    """

    flops: float
    bandwidth: float
    keeps_barriers: bool = True

    def seconds(self, flops: float, moved: float) -> float:
        """Time for that many operations and bytes, as if they did not overlap."""
        return flops / self.flops + moved / self.bandwidth


CPU = Device(flops=1e11, bandwidth=2e10)
GPU = Device(flops=6e13, bandwidth=2e12)
TPU = Device(flops=1e14, bandwidth=1e12)

_BY_PLATFORM = {"cpu": CPU, "gpu": GPU, "cuda": GPU, "rocm": GPU, "tpu": TPU}


def device_of(platform: str) -> Device:
    """Typical figures for a platform. Plans are compared by ratios, so orders of magnitude do."""
    return _BY_PLATFORM.get(platform, GPU)
