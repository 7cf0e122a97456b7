"""Arrays in npz files, by the names of an artifact's leaves. Nothing is ever unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mixflow.errors import InputError
from mixflow.files import replacing

# What numpy and zipfile raise for bytes that are no arrays, or pickles.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file.

    Raises:
        InputError: there is no such file, or it is no npz file, damaged, or holds pickles.
    """
    try:
        with path.open("rb") as handle:
            file = _archive(path, handle)
            return {name: _member(path, file, name) for name in file.files}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _archive(path: Path, handle: BinaryIO) -> Any:
    try:
        file: Any = np.load(handle, allow_pickle=False)
    except _UNREADABLE:
        raise InputError(f"{path} is no npz file, or a damaged one") from None
    if isinstance(file, np.ndarray):
        raise InputError(f"{path} is a single array; give an npz file, with one array per name")
    return file


def _member(path: Path, file: Any, name: str) -> np.ndarray:
    try:
        array = file[name]
    except _UNREADABLE as error:
        pickled = isinstance(error, ValueError) and "allow_pickle" in str(error)
        why = "holds pickled objects, which are not loaded" if pickled else "is damaged"
        raise InputError(f"{path}: {name!r} {why}") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: {name!r} is no array")
    return array


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an npz file, whole or not at all.

    `numpy.savez` takes names as keywords, and has parameters of its own: an array named "file"
    would fail.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
