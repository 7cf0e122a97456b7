"""Pair what two lists have in common: by one key after another, or the most alike first."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Key = Callable[[T], Hashable]


@dataclass(frozen=True)
class Matched(Generic[T]):
    """Arguments:
    pairs: for each key, the old and new items that agree in it and in none before it.
    gone: the old items without a partner.
    new: the new ones.
    """

    pairs: tuple[tuple[tuple[T, T], ...], ...]
    gone: tuple[T, ...]
    new: tuple[T, ...]


def match(old: Iterable[T], new: Iterable[T], keys: Sequence[Key[T]]) -> Matched[T]:
    """Pair items in order, each once.

    Arguments:
        old, new: the items.
        keys: from the strictest to the loosest.
    """
    found: list[tuple[tuple[T, T], ...]] = []
    gone, born = list(old), list(new)
    for key in keys:
        pairs, gone, born = _by_key(gone, born, key)
        found.append(tuple(pairs))
    return Matched(tuple(found), tuple(gone), tuple(born))


def _by_key(old: list[T], new: list[T], key: Key[T]) -> tuple[list[tuple[T, T]], list[T], list[T]]:
    waiting: dict[Hashable, deque[T]] = defaultdict(deque)
    for item in old:
        waiting[key(item)].append(item)
    pairs, born = list[tuple[T, T]](), list[T]()
    for item in new:
        partners = waiting.get(key(item))
        if partners:
            pairs.append((partners.popleft(), item))
        else:
            born.append(item)
    left = {id(item) for partners in waiting.values() for item in partners}
    return pairs, [item for item in old if id(item) in left], born


def match_alike(
    old: Sequence[T], new: Sequence[T], likeness: Callable[[T, T], float]
) -> Matched[T]:
    """Pair the two items that are most alike, then the next two, each item once.

    A matching with the largest sum (networkx) takes 7 s for 120 regions, this one 0.01 s.

    Arguments:
        old, new: the items.
        likeness: of an old and a new one; 0 for two that have nothing to do with each other.
    """
    scored = (
        (likeness(one, other), i, j) for i, one in enumerate(old) for j, other in enumerate(new)
    )
    partners: dict[int, int] = {}
    taken = set[int]()
    for _, i, j in sorted((one for one in scored if one[0] > 0), key=lambda one: -one[0]):
        if i not in partners and j not in taken:
            partners[i] = j
            taken.add(j)
    pairs = tuple((old[i], new[j]) for i, j in sorted(partners.items()))
    gone = tuple(one for i, one in enumerate(old) if i not in partners)
    return Matched((pairs,), gone, tuple(one for j, one in enumerate(new) if j not in taken))
