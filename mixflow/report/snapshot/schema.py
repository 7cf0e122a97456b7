"""What a snapshot's JSON has to look like, and the first thing in which it does not."""

from __future__ import annotations

import sys
from typing import Any

_NUMBER = (int, float)
_TEXT = (str,)
_COUNTS = {"*": (int,)}

_FIGURES = {
    "temp_bytes": (int,),
    "total_bytes": (int,),
    "flops": (*_NUMBER, type(None)),
    "bytes_moved": (*_NUMBER, type(None)),
    "eqns": (int,),
}
_PROGRAM = {
    **_FIGURES,
    "fingerprint": _TEXT,
    "operations": {"by_kind": _COUNTS, "by_line": _COUNTS, "by_region": _COUNTS},
    "regions": [
        {
            **dict.fromkeys(("path", "operation", "at", "fingerprint", "own_fingerprint"), _TEXT),
            "operations": _COUNTS,
        }
    ],
    "peak?": {
        "bytes": (int,),
        "buffers": (int,),
        "alive": [{"bytes": (int,), "aval": _TEXT, "at": _TEXT, "primitive": _TEXT}],
    },
    "timeline?": {"steps": (int,), "points": [(list,)]},
}
_ENTRY = {
    "target": _TEXT,
    "plan": _TEXT,
    "rewrites": [dict.fromkeys(("pass", "at", "what"), _TEXT)],
    "declined": [dict.fromkeys(("pass", "at", "why"), _TEXT)],
    "before": _PROGRAM,
    "after": _PROGRAM,
}
SNAPSHOT = {
    **dict.fromkeys(("mixflow", "jax", "backend"), _TEXT),
    "entries": {"*": _ENTRY},
}
"""A tuple holds types, a list the shape of each item; key `*` is any key, `?` allows null."""


def complaint(value: Any, shape: Any, where: str = "") -> str | None:
    """What is wrong with a JSON value, in words; None where it has the shape."""
    if isinstance(shape, tuple):
        return None if _fits(value, shape) else f"{where} is {_shown(value)}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        items = [(f"{where}[{place}]", item, shape[0]) for place, item in enumerate(value)]
    else:
        if not isinstance(value, dict):
            return f"{where or 'the file'} is no object"
        items = list(_fields(value, shape, where))
    found = (complaint(item, inner, at) for at, item, inner in items)
    return next((one for one in found if one is not None), None)


def _fits(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    is_figure = not isinstance(value, (int, float)) or abs(value) <= sys.float_info.max
    return isinstance(value, types) and is_figure


def _fields(value: dict[str, Any], shape: dict[str, Any], where: str) -> Any:
    """Each field with its place and its shape."""
    dot = f"{where}." if where else ""
    for name, inner in shape.items():
        if name == "*":
            yield from ((f"{dot}{key}", item, inner) for key, item in value.items())
        elif not name.endswith("?"):
            yield f"{dot}{name}", value.get(name, _MISSING), inner
        elif value.get(name[:-1]) is not None:
            yield f"{dot}{name[:-1]}", value[name[:-1]], inner


class _Missing:
    """Stands for a field that is not there: of no type that a shape allows."""


_MISSING = _Missing()


def _shown(value: Any) -> str:
    return "missing" if value is _MISSING else f"{value!r:.40}"
