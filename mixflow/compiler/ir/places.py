"""Source lines as snapshots store them: the same on every machine."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path, PurePath

from mixflow.compiler.ir.dialects.remarks import Remark

UNKNOWN = "<unknown>"
_FILES = re.compile(r"[^\s'\"()<>]+\.py\b")
_PACKAGES = "site-packages"
_LINE = re.compile(r"(\.py):\d+")


def place(at: str) -> str:
    """A `file:line` with the file relative to the current directory, and `/` between folders.

    A file of an installed package is named from the package on.
    """
    file, colon, line = at.rpartition(":")
    return f"{relative(file)}{colon}{line}" if colon else at


def places_in(text: str) -> str:
    """A text with the Python files in it named as `place` names them."""
    here = f"{Path.cwd()}{os.sep}"
    return _FILES.sub(lambda found: relative(found[0]), text.replace(here, ""))


def relative(file: str) -> str:
    """A file's path relative to the current directory, or from its installed package on."""
    path = PurePath(file)
    if _PACKAGES in path.parts:
        start = len(path.parts) - path.parts[::-1].index(_PACKAGES)
        return PurePath(*path.parts[start:]).as_posix()
    if not path.is_absolute():
        return path.as_posix()
    try:
        return PurePath(os.path.relpath(file)).as_posix()
    except ValueError:  # another drive
        return path.name


def placed(remark: Remark) -> Remark:
    """The remark with its source lines as `place` names them."""
    return replace(remark, text=places_in(remark.text), at=place(remark.at))


def without_lines(text: str) -> str:
    """A text with the line numbers of Python files left out: equal where code has only moved."""
    return _LINE.sub(r"\1", text)
