"""How much more a program may cost, and which passes must have rewritten it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mixflow.errors import InputError
from mixflow.passes import PASSES
from mixflow.units import parse_budget

_PERCENT = re.compile(r"([+-]?)(\d+(?:\.\d+)?)\s*%")
_AMOUNT = re.compile(r"([+-]?)(\d.*)")
_SIGNS = {"": 1, "+": 1, "-": -1}


@dataclass(frozen=True)
class Threshold:
    """The most by which a figure may grow.

    Arguments:
        text: as it was given, such as "+5%".
        share: of the old figure; 0 where an amount was given.
        amount: in the figure's unit.
    """

    text: str
    share: float
    amount: float

    def most(self, old: float) -> float:
        """The largest new figure that is allowed."""
        return old * (1 + self.share) + self.amount


def parse_threshold(text: str, option: str, *, is_memory: bool) -> Threshold:
    """A threshold from "+5%", "+10MiB" (memory only), "-1000" or "0".

    Raises:
        InputError: it is none of these.
    """
    stripped = text.strip()
    percent, amount = _PERCENT.fullmatch(stripped), _AMOUNT.fullmatch(stripped)
    if percent:
        return Threshold(text, _SIGNS[percent[1]] * float(percent[2]) / 100, 0.0)
    try:
        size = None if amount is None else _size(amount[2], is_memory=is_memory)
    except (ValueError, InputError):
        size = None
    if amount is None or size is None:
        sizes = ", a size such as +10MiB" if is_memory else ""
        raise InputError(f"{option} {text!r}: give a share such as +5%{sizes}, or a number, or 0")
    return Threshold(text, 0.0, _SIGNS[amount[1]] * size)


def _size(text: str, *, is_memory: bool) -> float:
    if is_memory and not text.isdigit():
        return parse_budget(text)
    return float(text)


@dataclass(frozen=True)
class Requirement:
    """A pass that must have rewritten an entry, or every entry where none is named."""

    name: str
    entry: str | None

    @property
    def text(self) -> str:
        """As it was given."""
        return self.name if self.entry is None else f"{self.entry}:{self.name}"


def parse_requirement(text: str) -> Requirement:
    """A requirement from PASS or ENTRY:PASS.

    Raises:
        InputError: there is no such pass.
    """
    entry, _, name = text.rpartition(":")
    if name not in PASSES:
        names = ", ".join(PASSES)
        raise InputError(f"--require {text!r}: there is no pass {name!r}; there are {names}")
    return Requirement(name, entry or None)
