"""Memory budgets: a number of bytes as people write it, or a share of the device's memory."""

from __future__ import annotations

from typing import Any

import jax

from mixflow.errors import InputError
from mixflow.units import parse_budget


def budget_bytes(budget: str | float | None) -> int | None:
    """A budget in bytes; None for none.

    Arguments:
        budget: text as `parse_budget` takes it, a whole number of bytes, or a share of the
            device's memory between 0 and 1.

    Raises:
        InputError: none of these, or a share where the device does not report its memory.
    """
    if budget is None:
        return None
    if isinstance(budget, str):
        return parse_budget(budget)
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    if isinstance(budget, float) and 0 < budget <= 1:
        return int(budget * _device_memory(budget))
    raise InputError(
        f"memory_budget={budget!r}: give bytes, text such as '8GiB', or a share of the device's "
        "memory such as 0.5"
    )


def _device_memory(share: float) -> int:
    device: Any = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if not limit:
        raise InputError(
            f"memory_budget={share}: the {device.platform} device does not report how much memory "
            "it has; give bytes, or text such as '8GiB'"
        )
    return limit
