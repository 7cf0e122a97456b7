"""Write files and folders whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mixflow.errors import InputError

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD of <fcntl.h>, RENAME_EXCHANGE of <linux/fs.h>


def replace_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Make a folder with these files, in place of an older one of the same kind.

    The files are written to a folder beside it, which then takes its place. On Linux the two are
    exchanged in one step: whoever looks, and whenever the process is killed, there is the old
    folder or the new one. Elsewhere, and on file systems without that, there is none for a moment.

    Arguments:
        folder: it is made, with those above it, if need be.
        contents: the files by name.

    Raises:
        InputError: the folder holds a file that is not one of these, and would be lost.
        OSError: it cannot be written; what was there is still there.
    """
    _keep_strangers(folder, contents)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, content in contents.items():
            _write(fresh / name, content)
        fresh.chmod(0o755)
        _sync(fresh)
        _swap(fresh, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # the old folder now, or what came of the new one


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end: all of it, or nothing.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _keep_strangers(folder: Path, contents: Mapping[str, bytes]) -> None:
    held = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    strangers = [name for name in held if name not in contents]
    if strangers:
        raise InputError(
            f"{folder} holds {strangers[0]!r}, which mixflow did not write and would have to "
            "delete: move it, or choose another folder"
        )


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o644)


def _sync(folder: Path) -> None:
    """Have the folder's list of files on the disk, not only the files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(fresh: Path, folder: Path) -> None:
    """Put a folder in the place of another; the other is then where the first was."""
    if not folder.exists():
        fresh.rename(folder)
        return
    if _exchange(fresh, folder):
        return
    old = fresh.with_name(f"{fresh.name}.old")
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    old.rename(fresh)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, where the system can. Python has no call for it."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if exchange is None:
        return False
    return exchange(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
