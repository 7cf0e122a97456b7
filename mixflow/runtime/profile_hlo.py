"""Where in the source the instructions of an optimised HLO module come from, by its text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mixflow.report.places import place

_FILE = re.compile(r'(\d+) "(.*)"')
_LOCATION = re.compile(r"(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)")
_FRAME = re.compile(r"(\d+) \{file_location_id=(\d+)")
_COMPUTATION = re.compile(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = ")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")
_FORWARDED = re.compile(r" (?:copy|bitcast|get-tuple-element)\(%([\w.\-]+)")
_OPERATION = re.compile(r'op_name="([^"]*)"')
_STACK_FRAME = re.compile(r"stack_frame_id=(\d+)")


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
    """The origins of a module's instructions."""

    known: dict[str, Origin] = field(default_factory=dict[str, Origin])
    forwarded: dict[str, str] = field(default_factory=dict[str, str])
    inside: dict[str, str] = field(default_factory=dict[str, str])
    callers: dict[str, str] = field(default_factory=dict[str, str])

    def of(self, name: str) -> Origin:
        """An instruction's origin.

        Without one of its own, it has the origin of what it copies, or else of what calls the
        computation that it is in: a loop, for what the loop carries.
        """
        seen: set[str] = set()
        while name and name not in seen:
            seen.add(name)
            if name in self.known:
                return self.known[name]
            name = self.forwarded.get(name) or self.callers.get(self.inside.get(name, ""), "")
        return Origin()


def read_origins(text: str) -> Origins:
    """Read a module's text, as XLA dumps it after its optimisations."""
    head, _, body = text.partition("StackFrames")
    frames, computations = body.split("\n\n", 1) if "\n\n" in body else ("", text)
    places = _places(head, frames)
    origins, computation = Origins(), ""
    for line in computations.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[1]
        elif found := _INSTRUCTION.match(line):
            origins.inside[found[1]] = computation
            _read_instruction(found[1], line, places, origins)
    return origins


def _places(head: str, frames: str) -> dict[str, str]:
    """Stack frames, by number, as file and line."""
    files = {number: file for number, file in _FILE.findall(head.partition("FunctionNames")[0])}
    locations = {
        number: place(f"{files[file]}:{line}") for number, file, line in _LOCATION.findall(head)
    }
    return {number: locations[location] for number, location in _FRAME.findall(frames)}


def _read_instruction(name: str, line: str, places: dict[str, str], origins: Origins) -> None:
    branches = [part.strip(" %") for group in _BRANCHES.findall(line) for part in group.split(",")]
    for called in [*_CALLED.findall(line), *branches]:
        origins.callers.setdefault(called, name)
    operation, frame = _OPERATION.search(line), _STACK_FRAME.search(line)
    if operation or frame:
        source = places.get(frame[1], "") if frame else ""
        origins.known[name] = Origin(operation[1] if operation else "", source)
    elif forwarded := _FORWARDED.search(line):
        origins.forwarded[name] = forwarded[1]
