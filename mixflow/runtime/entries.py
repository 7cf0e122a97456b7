"""Find the entries of a model file: compiled functions with example arguments."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mixflow.errors import InputError, MixflowError
from mixflow.runtime.function import CompiledFunction


def load_entries(spec: str) -> list[CompiledFunction]:
    """The entries that `MODEL.py` or `MODEL.py:NAME` names.

    Raises:
        InputError: no such file, it does not import, it has no such entry, or an entry lacks
            example arguments.
    """
    path, name = _split(spec)
    found = _entries(_import(path))
    if not found:
        raise InputError(f"{path} has no entry: decorate a function with @mixflow.compile")
    if name is not None and name not in found:
        raise InputError(f"{path} has no entry {name!r}; it has {', '.join(found)}")
    chosen = list(found.items()) if name is None else [(name, found[name])]
    for entry, function in chosen:
        if not function.has_examples:
            raise InputError(
                f"{path}:{entry} has no example arguments: add a function that returns them, "
                f"decorated with @{entry}.example_args"
            )
    return [function for _, function in chosen]


def repeated_name(names: Sequence[str]) -> str | None:
    """The first name that stands among some twice; what is kept by name would be lost."""
    return next((name for name in names if names.count(name) > 1), None)


def require_distinct(names: Sequence[str], option: str, place: str) -> None:
    """See that entries can be written by name.

    Arguments:
        names: the entries'.
        option: the command's, that asks for files.
        place: what it needs for each entry.

    Raises:
        InputError: two entries have one name.
    """
    twice = repeated_name(names)
    if twice is not None:
        raise InputError(
            f"two entries' functions are named {twice!r}, and {option} needs a {place} for each: "
            "rename one, or choose one as MODEL.py:NAME"
        )


def _split(spec: str) -> tuple[Path, str | None]:
    path, name = Path(spec), None
    if not path.exists() and ":" in spec:
        file, _, name = spec.rpartition(":")
        path = Path(file)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a Python file, or FILE.py:NAME")
    if path.suffix != ".py":
        raise InputError(f"{path} is not a Python file (.py)")
    return path, name


def _entries(module: ModuleType) -> dict[str, CompiledFunction]:
    found: dict[str, CompiledFunction] = {}
    for name, value in vars(module).items():
        if isinstance(value, CompiledFunction) and value not in found.values():
            found[name] = value
    return found


def _import(path: Path) -> ModuleType:
    """Import a file as Python would run it, its folder first on the path."""
    name = f"mixflow_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise InputError(describe(error, path)) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def reason(error: Exception) -> str:
    """Why something failed, in one line: mixflow's own words, or any other error's description."""
    return " ".join(str(error).split()) if isinstance(error, MixflowError) else describe(error)


def describe(error: BaseException, path: Path | None = None) -> str:
    """An exception in one line: where in the user's code, its type, and its first line.

    Arguments:
        error: as it was caught.
        path: what to name where the traceback has no line of the user's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if _is_users(frame.filename)]
    place = f"{_relative(mine[-1].filename)}:{mine[-1].lineno}: " if mine else ""
    place = f"{path}: " if path is not None and not mine else place
    lines = str(error).strip().splitlines()
    return place + (f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _is_users(filename: str) -> bool:
    libraries = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<")
    return "site-packages" not in filename and not filename.startswith(libraries)


def _relative(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
