"""What the commands write, and what they say while they work."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from mixflow.files import replacing

ROOT = Path(__file__).resolve().parents[1]
"""Where `benchmarks` and `examples` are."""

PAGES = ROOT / "docs" / "benchmarks"
"""Where the documentation has its figures."""


def write_report(
    folder: Path,
    name: str,
    report: dict[str, Any],
    page: str,
    pictures: Mapping[str, bytes] | None = None,
) -> None:
    """Write NAME.json, NAME.md and pictures to a folder, each file whole.

    Arguments:
        folder: made where it is not there.
        name: what the two are called.
        report: what goes into the JSON.
        page: in Markdown.
        pictures: PNG files by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.json": json.dumps(report, indent=2) + "\n", f"{name}.md": page}
    files = {name: text.encode() for name, text in texts.items()} | dict(pictures or {})
    for file_name, content in files.items():
        with replacing(folder / file_name) as file:
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
