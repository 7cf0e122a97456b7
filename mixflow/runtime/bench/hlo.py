"""Where in the source the instructions of an optimised HLO module come from, by its text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mixflow.compiler.ir.places import place

_FILE = re.compile(r'(\d+) "(.*)"')
_LOCATION = re.compile(r"(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)")
_FRAME = re.compile(r"(\d+) \{file_location_id=(\d+)")
_COMPUTATION = re.compile(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")
_COPY = re.compile(r" (?:copy|bitcast)\((%[^)]*)\)")
_PART = re.compile(r" get-tuple-element\(%([\w.\-]+)\), index=(\d+)")
_FUSION = re.compile(r" fusion\(([^)]*)\).*?calls=%([\w.\-]+)")
_LOOP = re.compile(r" while\(%([\w.\-]+)\).*? body=%([\w.\-]+)")
_TUPLE = re.compile(r" tuple\(([^)]*)\)")
_PARAMETER = re.compile(r" parameter\((\d+)\)")
_UPDATE = re.compile(r" dynamic-update-slice\(%[^,]+, (%[^,]+),")
_REFERENCE = re.compile(r"%([\w.\-]+)(?:#(\d+))?")
_OPERATION = re.compile(r'op_name="([^"]*)"')
_STACK_FRAME = re.compile(r"stack_frame_id=(\d+)")

_Reference = tuple[str, str]  # an instruction, and which part of its tuple; "" for all


@dataclass(frozen=True)
class Origin:
    """Arguments:
    operation: the name that JAX gave the operation; empty where XLA made it by itself.
    source: file and line; empty for arguments and what XLA made.
    """

    operation: str = ""
    source: str = ""


@dataclass
class Origins:
    """What is read of a module's instructions, by name.

    Arguments:
        known: the origins that XLA names.
        forwarded: what an instruction copies, or takes a part of.
        updates: what an instruction writes into a larger buffer.
        tuples: what a tuple holds.
        parameters: the number of a computation's parameter.
        inside: the computation that an instruction is in.
        callers: what calls a computation.
        fusions: a fusion's operands and computation.
        loops: a loop's first values and computation.
        roots: a computation's result.
    """

    known: dict[str, Origin] = field(default_factory=dict[str, Origin])
    forwarded: dict[str, _Reference] = field(default_factory=dict[str, _Reference])
    updates: dict[str, _Reference] = field(default_factory=dict[str, _Reference])
    tuples: dict[str, list[_Reference]] = field(default_factory=dict[str, list[_Reference]])
    parameters: dict[str, int] = field(default_factory=dict[str, int])
    inside: dict[str, str] = field(default_factory=dict[str, str])
    callers: dict[str, str] = field(default_factory=dict[str, str])
    fusions: dict[str, tuple[list[_Reference], str]] = field(
        default_factory=dict[str, tuple[list[_Reference], str]]
    )
    loops: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    roots: dict[str, str] = field(default_factory=dict[str, str])

    def of(self, name: str, part: str = "") -> Origin:
        """The origin of an instruction, or of a part of its tuple.

        For what a loop carries, it is where the loop computes that, and for values that a loop
        saves, where those come from. What XLA made by itself has the origin of what it copies, or
        else of what calls the computation that it is in.
        """
        here, seen, nearest = (name, part), set[_Reference](), Origin()
        while here[0] and here not in seen:
            seen.add(here)
            own, onward = self.known.get(here[0]), self._made_by(here)
            if own and not onward:
                return own
            nearest = nearest if nearest.operation else own or nearest
            here = onward or (self.callers.get(self.inside.get(here[0], ""), ""), "")
        return nearest

    def _made_by(self, here: _Reference) -> _Reference | None:
        """What has the same value, or the values of which this is made up."""
        name, part = here
        if name in self.tuples and part:
            return self.tuples[name][int(part)]
        if name in self.forwarded and (name not in self.known or self.forwarded[name][1]):
            return self.forwarded[name]
        root = self.roots.get(self.fusions[name][1], "") if name in self.fusions else name
        if root in self.updates:
            return self.updates[root]
        caller = self.callers.get(self.inside.get(name, ""), "")
        if name in self.parameters and caller in self.fusions:
            return self.fusions[caller][0][self.parameters[name]]
        loop = caller if name in self.parameters else name
        return self._carried(loop, part) if loop in self.loops and part else None

    def _carried(self, loop: str, part: str) -> _Reference | None:
        """What a loop carries, as its step computes it; as it began where no step changes it."""
        start, body = self.loops[loop]
        results = self.tuples.get(self.roots.get(body, ""), [])
        if int(part) >= len(results):
            return None
        result = results[int(part)]
        source = self.forwarded.get(result[0], result)
        unchanged = source[0] in self.parameters and source[1] == part
        return (start, part) if unchanged else result


def read_origins(text: str) -> Origins:
    """Read a module's text, as XLA dumps it after its optimisations."""
    head, _, body = text.partition("StackFrames")
    frames, _, computations = body.partition("\n\n")
    places = _places(head, frames)
    origins, computation = Origins(), ""
    for line in computations.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[1]
        elif found := _INSTRUCTION.match(line):
            origins.inside[found[2]] = computation
            if found[1]:
                origins.roots[computation] = found[2]
            _read_origin(found[2], line, places, origins)
            _read_structure(found[2], line, origins)
    return origins


def _places(head: str, frames: str) -> dict[str, str]:
    """Stack frames, by number, as file and line."""
    names = head.partition("FunctionNames")[0]
    files = {found[1]: found[2] for found in _FILE.finditer(names)}
    locations = {
        number: place(f"{files[file]}:{line}") for number, file, line in _LOCATION.findall(head)
    }
    return {number: locations[location] for number, location in _FRAME.findall(frames)}


def _read_origin(name: str, line: str, places: dict[str, str], origins: Origins) -> None:
    operation, frame = _OPERATION.search(line), _STACK_FRAME.search(line)
    if operation or frame:
        source = places.get(frame[1], "") if frame else ""
        named = operation[1].replace("\\'", "'") if operation else ""
        origins.known[name] = Origin(named, source)


def _read_structure(name: str, line: str, origins: Origins) -> None:
    for computation in _CALLED.findall(line) + _names(" ".join(_BRANCHES.findall(line))):
        origins.callers.setdefault(computation, name)
    if found := _PARAMETER.search(line):
        origins.parameters[name] = int(found[1])
    elif found := _LOOP.search(line):
        origins.loops[name] = found[1], found[2]
    elif found := _FUSION.search(line):
        origins.fusions[name] = _references(found[1]), found[2]
    elif found := _PART.search(line):
        origins.forwarded[name] = found[1], found[2]
    elif found := _COPY.search(line):
        origins.forwarded[name] = _references(found[1])[0]
    elif found := _UPDATE.search(line):
        origins.updates[name] = _references(found[1])[0]
    elif found := _TUPLE.search(line):
        origins.tuples[name] = _references(found[1])


def _references(text: str) -> list[_Reference]:
    return [(name, part) for name, part in _REFERENCE.findall(text)]


def _names(text: str) -> list[str]:
    return [name for name, _ in _references(text)]
