"""The two orders in which XLA's CPU backend considers running a region's kernels.

Source: XLA's BFScheduler and DFSMemoryScheduler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mixflow.compiler.analysis.dataflow import Kind
from mixflow.compiler.analysis.fusion import Kernel


def breadth_first(kernels: list[Kernel]) -> list[int]:
    """Each kernel as soon as what it reads is there, first come, first served."""
    waiting = [len(kernel.reads) for kernel in kernels]
    readers = _readers(kernels)
    ready = deque(place for place, count in enumerate(waiting) if not count)
    order: list[int] = []
    while ready:
        place = ready.popleft()
        order.append(place)
        for reader in readers[place]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order


def depth_first(kernels: list[Kernel], roots: Iterable[int]) -> list[int]:
    """Each kernel right before it is needed.

    Of several operands the one with the most readers on the way to it comes first, then the one
    that takes the most bytes to compute.

    Arguments:
        roots: the places of the results.
    """
    rank = _ranks(kernels)
    by_rank = rank.__getitem__
    order: list[int] = []
    entered: set[int] = set()
    done: set[int] = set()
    stack = [*range(len(kernels) - 1, -1, -1), *sorted(roots, key=by_rank, reverse=True)]
    while stack:
        place = stack[-1]
        if place in entered:
            stack.pop()
            if place not in done:
                done.add(place)
                order.append(place)
            continue
        entered.add(place)
        reads = sorted(kernels[place].reads, key=by_rank, reverse=True)
        stack.extend(read for read in reads if read not in entered)
    return order


def _ranks(kernels: list[Kernel]) -> list[tuple[int, int]]:
    """For each kernel, what operands are sorted by: extra readers and bytes, more of them first.

    Both are summed over all paths that lead to it, and capped as there are so many of them.
    """
    readers = _readers(kernels)
    ranks: list[tuple[int, int]] = []
    total = 0
    for kernel, after in zip(kernels, readers, strict=True):
        if kernel.value.kind is Kind.SOURCE:
            ranks.append((0, 0))
            continue
        own = kernel.value.bytes if kernel.value.shares is None else 0
        total += own
        extra = max(len(after) - 1, 0) - sum(ranks[read][0] for read in kernel.reads)
        size = own - sum(ranks[read][1] for read in kernel.reads)
        ranks.append((-min(extra, len(kernels)), -min(size, total)))
    return ranks


def _readers(kernels: list[Kernel]) -> list[list[int]]:
    readers: list[list[int]] = [[] for _ in kernels]
    for place, kernel in enumerate(kernels):
        for read in kernel.reads:
            readers[read].append(place)
    return readers
