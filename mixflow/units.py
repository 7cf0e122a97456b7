"""Amounts of memory, as people write and read them."""

from __future__ import annotations

import math
import re

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
