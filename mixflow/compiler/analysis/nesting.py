"""How the steps of a loop are nested: loops in loops, each a checkpointed part of the one above."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

Lengths = tuple[int, ...]

REMAINDER_PAYS = 5, 4
"""A nest without a remainder may store up to 5/4 of the states that the best nest stores.

Ten steps as 2 × 5 have no remainder; as 3 × 3 and one more they have. A remainder is a second copy
of the step to compile, and the arrays that the loop runs over are cut in two, so copied.
"""


@dataclass(frozen=True)
class Nest:
    """The steps of a loop, in nested loops.

    Arguments:
        parts: nests that run one after the other; of each the lengths, the outermost first. The
            first has all the levels; what does not fill one more round of it comes after, with
            fewer levels, in the memory that the first part's inner levels need later.
    """

    parts: tuple[Lengths, ...]

    @property
    def levels(self) -> int:
        """The depth of the deepest part."""
        return len(self.parts[0])

    @property
    def steps(self) -> int:
        """The number of steps."""
        return sum(map(math.prod, self.parts))

    @property
    def states(self) -> int:
        """The most states of the loop that are saved at once.

        While a part is differentiated, those before it have their outermost level's states saved.
        """
        saved, most = 0, 0
        for lengths in self.parts:
            most = max(most, saved + sum(lengths))
            saved += lengths[0]
        return most

    @property
    def forwards(self) -> int:
        """How often a step runs before its own backward pass, all steps together.

        Once at each level. The backward pass reruns the inside of a step on top of that.
        """
        return sum(len(lengths) * math.prod(lengths) for lengths in self.parts)

    def __str__(self) -> str:
        return " + ".join(" x ".join(map(str, lengths)) for lengths in self.parts)


def choose_nest(steps: int, levels: int) -> Nest:
    """The nest with the fewest saved states, and of those the one with the fewest levels.

    With S bytes of state, saved at each level, the loop saves S·ΣL. Near-equal lengths make that
    least: about levels · steps^(1/levels) states, for levels - 1 extra forward passes. Revolve
    (Griewank and Walther, 2000) shows the least number of forward passes that any schedule needs;
    it has chunks of unequal lengths, which no scan has.

    Arguments:
        steps: the loop's length.
        levels: the most levels that are allowed.
    """
    flat = Nest(((steps,),))
    if levels == 1:
        return flat
    nests = [flat]
    for depth in range(2, levels + 1):
        lengths = _near_equal(steps, depth)
        if lengths is None:
            break
        nests.append(_with_remainder(lengths, steps))
    return min(nests, key=lambda nest: nest.states)


def _with_remainder(lengths: Lengths, steps: int) -> Nest:
    rest = steps - math.prod(lengths)
    if not rest:
        return Nest((lengths,))
    room = sum(lengths[1:])
    after = (choose_nest(rest, depth) for depth in range(1, len(lengths)))
    tail = next((nest for nest in after if nest.states <= room), None)
    return Nest((lengths, *(tail or choose_nest(rest, len(lengths) - 1)).parts))


def _near_equal(steps: int, depth: int) -> Lengths | None:
    """The lengths with the smallest sum, the innermost smallest; None where steps < 2^depth."""
    candidates = list(_candidates(steps, depth))
    if not candidates:
        return None
    over, under = REMAINDER_PAYS
    least = min(map(sum, candidates))
    exact = [one for one in candidates if math.prod(one) == steps]
    exact = [one for one in exact if under * sum(one) <= over * least]
    return min(
        exact or candidates,
        key=lambda lengths: (sum(lengths), steps - math.prod(lengths), lengths[::-1]),
    )


def _candidates(steps: int, depth: int) -> Iterator[Lengths]:
    """Inner lengths within a factor of two of the root, the largest first, under an outermost."""
    root = round(steps ** (1 / depth))
    for inner in combinations_with_replacement(range(2 * root, max(1, root // 2), -1), depth - 1):
        outermost = steps // math.prod(inner)
        if min(outermost, *inner) > 1:
            yield outermost, *inner
