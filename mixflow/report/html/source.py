"""The source code around a `file:line`, where the file can be read."""

from __future__ import annotations

import linecache
import textwrap
from dataclasses import dataclass

_AROUND = 3


@dataclass(frozen=True)
class CodeLine:
    """Arguments:
    number: of the line in its file.
    text: without the indentation that its neighbours have too.
    is_marked: whether it is the line that was asked for.
    """

    number: int
    text: str
    is_marked: bool


def excerpt(at: str, around: int = _AROUND) -> tuple[CodeLine, ...]:
    """A line of source code and its neighbours; none where there is no such line.

    Arguments:
        at: `file:line`.
        around: how many lines before it, and after it.
    """
    lines, number = _file(at)
    if not 0 < number <= len(lines):
        return ()
    first = max(number - around, 1)
    shown = textwrap.dedent("".join(lines[first - 1 : number + around])).rstrip().splitlines()
    return tuple(CodeLine(n, text, n == number) for n, text in enumerate(shown, first))


def code_at(at: str) -> str:
    """The line of source code itself, or nothing."""
    lines, number = _file(at)
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def _file(at: str) -> tuple[list[str], int]:
    """The lines of a file, and the number of the one that is meant."""
    name, _, number = at.rpartition(":")
    if not number.isdecimal():
        return [], 0
    linecache.checkcache(name)
    return linecache.getlines(name), int(number)
