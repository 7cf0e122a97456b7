"""Snapshots as people name them: a file, or a git revision of one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from mixflow.errors import InputError
from mixflow.report.snapshot.describe import FORMAT, FORMAT_VERSION, Snapshot
from mixflow.report.snapshot.schema import SNAPSHOT, complaint


def load_snapshot(name: str) -> Snapshot:
    """Read a snapshot.

    Arguments:
        name: a file, or REVISION:FILE as `git show` takes it; without a revision that is what
            git's index has. A file of that name wins.

    Raises:
        InputError: there is none, or it is damaged, something else, or of a later format.
    """
    return parse_snapshot(read(name), name)


def read(name: str) -> str:
    """The text of a file, or of a git revision of one.

    Raises:
        InputError: there is no such thing, or it is no text.
    """
    path = Path(name)
    try:
        content = path.read_bytes() if path.exists() else _of_revision(name)
        return content.decode()
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no snapshot: it is not text") from error


def _of_revision(name: str) -> bytes:
    if not name.partition(":")[2] or name.startswith("-"):
        raise InputError(
            f"{name}: no such file; give a snapshot, or a git revision of one, such as "
            "main:graph.json"
        )
    try:
        found = subprocess.run(
            ["git", "cat-file", "blob", name],
            capture_output=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file, and git is not installed") from error
    if found.returncode:
        raise InputError(f"{name}: no such file, and git says: {_first_line(found.stderr)}")
    return found.stdout


def _first_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[0].removeprefix("fatal: ") if lines else "nothing"


def parse_snapshot(text: str, name: str) -> Snapshot:
    """A snapshot out of its text.

    Arguments:
        text: JSON.
        name: what to call it in an error.

    Raises:
        InputError: it is damaged, something else, or of a later format.
    """
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no snapshot, or a damaged one: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{name} is no snapshot: make one with mixflowc snapshot")
    version = found.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(
            f"{name} has format version {version}, and this mixflow reads {FORMAT_VERSION}: "
            "update mixflow"
        )
    wrong = complaint(found, {**SNAPSHOT, "version": (int,)})
    if wrong is not None:
        raise InputError(f"{name} is damaged: {wrong}")
    return found
