"""What the commands write, and what they say while they work."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from mixflow.runtime.artifact_files import replacing

PAGES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
"""Where the documentation has its figures."""


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by name to a folder, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with replacing(folder / name) as file:
            file.write(content)


def require_plots(_: Any, option: Any, folder: Path | None) -> Path | None:
    """An option's callback: pictures need matplotlib."""
    if folder is not None and find_spec("matplotlib") is None:
        raise click.BadParameter("matplotlib draws the pictures, and is not installed")
    return folder


def say(what: str) -> None:
    """On a terminal, what is going on; nothing in a pipe."""
    if sys.stderr.isatty():
        click.echo(what, err=True)
