"""Memory budgets: a number of bytes as people write it."""

from __future__ import annotations

import re

from mixflow.errors import InputError

_FACTORS = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), 1)},
}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_budget(text: str) -> int:
    """Bytes from "8GiB", "500 MB" or a plain number of bytes.

    Raises:
        InputError: not a positive amount of memory.
    """
    match = _PATTERN.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    count = int(float(match[1]) * factor) if match and factor is not None else 0
    if count <= 0:
        raise InputError(
            f"memory budget {text!r} is no amount of memory: write bytes, or a number with "
            "KiB, MiB, GiB, TiB (or KB, MB, GB, TB), such as 8GiB"
        )
    return count
