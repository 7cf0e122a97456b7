"""Where a command's text goes: standard output, or a file that is written whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from mixflow.errors import InputError
from mixflow.files import replacing

WIDTH_OF_FILES = 120
"""Columns where there is no terminal: a report's tables fit, and two runs can be compared."""


def console() -> Console:
    """Standard output, in the terminal's width or, in a pipe or file, in a fixed one."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_FILES)


def checked_out(out: Path | None) -> None:
    """Find out before the work whether a file can be written where `-o` says.

    Raises:
        InputError: it cannot.
    """
    if out is None:
        return
    if out.is_dir():
        raise InputError(f"-o: {out} is a folder; give a file")
    if not out.absolute().parent.is_dir():
        raise InputError(f"-o: there is no folder {out.parent} to write {out.name} to")


def write_text(text: str, out: Path | None) -> None:
    """Print a text, or put it in the place of a file.

    Raises:
        InputError: the file cannot be written; what was there is still there.
    """
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        with replacing(out) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"-o: cannot write {out}: {error.strerror}") from error
