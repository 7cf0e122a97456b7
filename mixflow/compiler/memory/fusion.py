"""Which values reach memory: a model of what XLA's fusion passes do on a CPU.

Two passes decide. First, library calls: a large reduction takes in, upwards, all that is computed
for it alone, and downwards its readers, as long as there is one only. Then, loop fusion: a value
is computed inside those of its readers that can take it in, and stored where one of them cannot.

Source: XLA's LibraryRewriter with YnnMatcher, InstructionFusion and CpuInstructionFusion.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from mixflow.compiler.memory.dataflow import Graph, Kind, Value
from mixflow.compiler.memory.products import reads_columns
from mixflow.compiler.primitives import TABLE, UNKNOWN

LIBRARY_ELEMENTS = 4096
"""An operation on fewer elements is not worth a library call to XLA."""

_LIBRARY_TYPES = frozenset({"float64", "float32", "bfloat16"})

_FUSIBLE = frozenset({Kind.CHEAP, Kind.COSTLY, Kind.MOVE, Kind.BROADCAST, Kind.REDUCE})
_ELEMENTWISE = frozenset({Kind.CHEAP, Kind.COSTLY})
_SLICES = frozenset({"slice", "dynamic_slice", "gather"})
_MAX_CONCATENATED = 8


@dataclass(slots=True)
class Kernel:
    """What runs as one, and leaves one value in memory (none, for a barrier or a loop).

    Arguments:
        value: what it computes.
        reads: the kernels whose values it reads, by place.
        aligned: those of which it needs one element for each that it computes; it may write to
            the memory of one of them.
        traffic: bytes that it reads and writes.
    """

    value: Value
    reads: tuple[int, ...]
    aligned: frozenset[int]
    traffic: int


_FUSED: WeakKeyDictionary[Graph, list[Kernel]] = WeakKeyDictionary()


def kernels_of(region: Graph) -> list[Kernel]:
    """The kernels of a region, each after those that it reads."""
    if region not in _FUSED:
        users = _users(region.values)
        values = _with_libraries(region, users)
        _FUSED[region] = _Fusion(values, users, set(region.results)).kernels()
    return _FUSED[region]


def _users(values: list[Value]) -> dict[Value, list[Value]]:
    users: dict[Value, list[Value]] = {value: [] for value in values}
    for value in values:
        for read in dict.fromkeys(value.reads):
            users[read].append(value)
    return users


# --- library calls -----------------------------------------------------------------------------


def _with_libraries(region: Graph, users: dict[Value, list[Value]]) -> list[Value]:
    """The values with each library call as one, in its last value; `users` follows."""
    fused: set[Value] = set()
    inside: set[Value] = set()
    results = set(region.results)
    position = {value: number for number, value in enumerate(region.values)}
    for value in reversed(region.values):
        # XLA starts each call at a reduction, and grows it from there both ways.
        if value.kind is not Kind.REDUCE or value in fused or not _suits_library(value):
            continue
        members, last = _library_call(value, users, fused, results)
        fused |= members
        inside |= members - {last}
        reads = {read for member in members for read in member.reads} - members
        last.aligned = _aligned(reads, members, last, users)
        for read in reads:
            users[read] = [*(user for user in users[read] if user not in members), last]
        last.kind = Kind.LIBRARY
        last.reads = tuple(sorted(reads, key=position.__getitem__))
    return [value for value in region.values if value not in inside]


def _library_call(
    start: Value, users: dict[Value, list[Value]], fused: set[Value], results: set[Value]
) -> tuple[set[Value], Value]:
    """All that the library call around a reduction computes, and which of it comes out."""

    def fits(value: Value) -> bool:
        return value not in fused and _suits_library(value)

    members, last, added = {start}, start, [start]
    while True:
        # Backwards: operands that nobody outside of the call reads. Then one reader forwards, if
        # there is but one, and backwards from that again.
        while added:
            for read in added.pop().reads:
                alone = read not in results and all(user in members for user in users[read])
                if alone and read not in members and fits(read):
                    members.add(read)
                    added.append(read)
        only = users[last][0] if len(users[last]) == 1 and last not in results else None
        if only is None or not fits(only):
            return members, last
        members.add(only)
        added.append(only)
        last = only


def _aligned(
    reads: set[Value], members: set[Value], last: Value, users: dict[Value, list[Value]]
) -> frozenset[Value]:
    """The operands of a library call that reach its result through element-wise members alone."""
    straight = {last} if last.kind in _ELEMENTWISE else set[Value]()
    found = list(straight)

    def leads_straight(value: Value) -> bool:
        inside = [user for user in users[value] if user in members]
        return value.size == last.size and all(user in straight for user in inside)

    while found:
        for read in found.pop().reads:
            inner = read in members and read.kind in _ELEMENTWISE and read not in straight
            if inner and leads_straight(read):
                straight.add(read)
                found.append(read)
    return frozenset(read for read in reads if leads_straight(read))


def _suits_library(value: Value) -> bool:
    """Whether XLA's CPU library has the operation, and it is large enough."""
    if not all(str(one.dtype) in _LIBRARY_TYPES for one in (value, *value.reads)):
        return False
    if value.kind is Kind.DOT:
        return value.rank > 1 and not reads_columns(value.eqn, value.reads[0])
    if not TABLE.get(value.name, UNKNOWN).library:
        return False
    if value.kind in (Kind.BROADCAST, Kind.MOVE):
        return True
    if max(one.size for one in (value, *value.reads)) < LIBRARY_ELEMENTS:
        return False
    return value.kind in (Kind.REDUCE, *_ELEMENTWISE)


# --- loop fusion -------------------------------------------------------------------------------


class _Fusion:
    """Decides from the last value to the first where each one is computed."""

    def __init__(
        self, values: list[Value], users: dict[Value, list[Value]], results: set[Value]
    ) -> None:
        self._values = values
        self._users = users
        self._results = results
        self._stored: set[Value] = set()
        self._takers: dict[Value, set[Value]] = {}
        """The readers that compute a value themselves."""
        self._home: dict[Value, Value | None] = {}
        """The one kernel that computes a value; None for several."""
        self._repeated: set[Value] = set()
        """Values that a kernel computes once for each of several elements."""
        for value in reversed(values):
            self._decide(value)

    def _decide(self, value: Value) -> None:
        """Decide whether a value is put in memory, and which readers compute it themselves.

        As XLA for CPU does: a reader takes a value in if it can. A value that all readers take in
        is in memory nowhere; in `sin(x) + cos(x)` both are computed inside the sum. What is costly
        is not computed twice: of `y = exp(x)` with two readers in two kernels, y is stored.
        """
        takers = self._willing(value) if value.kind in _FUSIBLE else set[Value]()
        stored = value in self._results or len(takers) < len(self._users[value]) or not takers
        # Readers in one kernel share what they compute; readers in two kernels compute it twice.
        homes = {self._home[taker] for taker in takers}
        if _is_expensive(value):
            stored = stored or None in homes or len(homes) > 1
        # Once in memory, it is read from there if that is less than computing it again.
        if stored and (_is_expensive(value) or _is_wide(value)):
            takers = set[Value]()
        if stored:
            self._stored.add(value)
        self._takers[value] = takers
        if not takers:
            self._home[value] = value
        else:
            self._home[value] = None if stored or len(homes) > 1 else homes.pop()
        # Inside a broadcast, a value would be computed once for each element of the result.
        if any(t.kind is Kind.BROADCAST or t in self._repeated for t in takers):
            self._repeated.add(value)

    def _willing(self, value: Value) -> set[Value]:
        """The readers that can compute a value themselves."""
        return {user for user in self._users[value] if self._takes(user, value)}

    def _takes(self, user: Value, value: Value) -> bool:
        if user.kind is Kind.UPDATE:
            is_base = user.name == "dynamic_update_slice" and user.reads[0] is value
            return user.name in ("stacked", "dynamic_update_slice") and not is_base
        if user.kind not in _FUSIBLE:
            return False
        if user.name == "concatenate" and len(user.reads) > _MAX_CONCATENATED:
            return False
        repeats = user.kind is Kind.BROADCAST or user in self._repeated
        return not (repeats and _is_expensive(value))

    def kernels(self) -> list[Kernel]:
        """The stored values, with what their kernels read."""
        position: dict[Value, int] = {}
        leaves: dict[Value, dict[Value, _Use]] = {}
        kernels: list[Kernel] = []
        for value in self._values:
            uses = leaves[value] = self._leaves(value, leaves)
            if value in self._stored:
                reads = tuple(position[leaf] for leaf in uses)
                aligned = frozenset(position[leaf] for leaf, use in uses.items() if use.aligned)
                position[value] = len(kernels)
                kernels.append(Kernel(value, reads, aligned, _traffic(value, uses)))
        return kernels

    def _leaves(self, value: Value, known: dict[Value, dict[Value, _Use]]) -> dict[Value, _Use]:
        """The stored values that a value is computed from, and how."""
        found: dict[Value, _Use] = {}
        # A slice reads no more of its operand than it gives.
        limit = value.bytes if value.name in _SLICES else None
        for read in value.reads:
            taken = value in self._takers[read]
            uses = known[read] if taken else {read: _Use(read.bytes, aligned=True)}
            straight = _is_aligned(value, read)
            if straight and not found:
                # As they are. After many steps θ is a sum of hundreds of values, each time of all.
                found = uses.copy()
                continue
            for leaf, use in uses.items():
                found[leaf] = _joined(found.get(leaf), use, limit, straight)
        return found


@dataclass(frozen=True, slots=True)
class _Use:
    """Bytes that a kernel reads of an operand, and whether element by element."""

    bytes: int
    aligned: bool


def _joined(before: _Use | None, use: _Use, limit: int | None, straight: bool) -> _Use:
    """What a kernel reads of an operand, if it reads it in one more way."""
    amount = use.bytes if limit is None else min(use.bytes, limit)
    aligned = straight and use.aligned
    if before is not None:
        amount, aligned = max(amount, before.bytes), aligned and before.aligned
    return use if amount == use.bytes and aligned == use.aligned else _Use(amount, aligned)


def _is_aligned(value: Value, read: Value) -> bool:
    if value.kind is Kind.LIBRARY:
        return value.aligned is not None and read in value.aligned
    return value.kind in _ELEMENTWISE and value.size == read.size


def _is_expensive(value: Value) -> bool:
    return value.kind in (Kind.COSTLY, Kind.REDUCE) or value.name == "gather"


def _is_wide(value: Value) -> bool:
    """Whether reading a value's operands takes more than reading the value itself.

    `a + b` of two matrices is wide: two arrays are read for one. `a + b[:, None]` is not: next to
    the matrix, the vector that is broadcast is nothing.
    """
    large = [
        read
        for read in value.reads
        if read.kind is not Kind.BROADCAST and read.size > 1 and read.rank >= value.rank
    ]
    return len(large) > 1 and sum(read.size for read in set(value.reads)) > value.size


def _traffic(value: Value, uses: dict[Value, _Use]) -> int:
    if value.kind in (Kind.SOURCE, Kind.PART, Kind.BARRIER) or value.nested is not None:
        return 0
    read = sum(use.bytes for use in uses.values())
    if value.kind is not Kind.UPDATE or value.name in ("copy", "stacked"):
        return read + value.bytes
    changed = sum(use.bytes for position, use in enumerate(uses.values()) if position > 0)
    return 2 * changed
