"""Memory budgets: a number of bytes as people write it, or a share of the device's memory."""

from __future__ import annotations

import math
import re
from typing import Any

import jax

from mixflow.errors import InputError

_FACTORS = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), 1)},
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_KIBI = 1024
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def format_bytes(count: float) -> str:
    """A number of bytes with a binary unit and three digits."""
    power = min(int(math.log(count, _KIBI)) if count >= 1 else 0, len(_UNITS) - 1)
    size = count / _KIBI**power
    return f"{float(f'{size:.3g}'):g} {_UNITS[power]}"


def parse_budget(text: str) -> int:
    """Bytes from "8GiB", "500 MB" or a plain number of bytes.

    Raises:
        InputError: not a positive amount of memory.
    """
    match = _PATTERN.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    count = float(match[1]) * factor if match and factor is not None else 0.0
    if not 1 <= count < math.inf:
        raise InputError(
            f"memory budget {text!r} is no amount of memory: write bytes, or a number with "
            "KiB, MiB, GiB, TiB (or KB, MB, GB, TB), such as 8GiB"
        )
    return int(count)


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
