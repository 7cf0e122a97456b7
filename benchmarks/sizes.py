"""At which sizes the reference program is measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from benchmarks.reference import Size

SWEEP = {"steps": (2, 4, 8), "layers": (4, 8, 12), "tokens": (256, 512)}
"""The axes of a sweep; every combination is measured."""

LONG_LOOP = Size(steps=64, layers=2, tokens=256)
"""Many steps of a small network: what the loop keeps for each step is most of the memory."""


def sizes(given: dict[str, int], *, sweep: bool = False, long_loop: bool = False) -> list[Size]:
    """The sizes to measure.

    Arguments:
        given: fields of `Size` that are set; a sweep does not go along their axes.
        sweep: measure along the axes of `SWEEP`.
        long_loop: start from `LONG_LOOP`.
    """
    base = replace(LONG_LOOP if long_loop else Size(), **given)
    axes = {name: values for name, values in SWEEP.items() if sweep and name not in given}
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [replace(base, **point) for point in points]
