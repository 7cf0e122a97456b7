"""Plans that were chosen before: in this process, or in another one that has JAX's cache as well.

A plan is right for any program. So a key says what a program looks like, not all that it is: two
programs with one key get the same plan, and each its own numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from mixflow.compiler import jax_compat
from mixflow.compiler.capture.capture import Captured
from mixflow.compiler.ir.dialects.remarks import Remark
from mixflow.compiler.jaxprs.subprograms import equations_in, nested_jaxprs
from mixflow.errors import InputError
from mixflow.files import replacing
from mixflow.planner.pipeline import parse_passes

FOLDER = "mixflow-plans"
"""The folder in JAX's compilation cache."""


@dataclass(frozen=True)
class Chosen:
    """The plan for a program.

    Arguments:
        passes: its pipeline.
        declines: what the planner decided against.
    """

    passes: str
    declines: tuple[Remark, ...]


class KnownPlans:
    """Plans by their programs.

    Arguments:
        settings: what else a plan depends on: the budget, and what the user vouches for.
    """

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._here: dict[Any, Chosen] = {}

    def find(self, captured: Captured, use: Any) -> Chosen | None:
        """The plan that was chosen in this process, or else one that another has written."""
        key = _key(captured, use)
        if key not in self._here:
            loaded = self.load(captured, use)
            if loaded is None:
                return None
            self._here[key] = loaded
        return self._here[key]

    def add(self, captured: Captured, use: Any, chosen: Chosen) -> None:
        """Remember a plan in this process."""
        self._here[_key(captured, use)] = chosen

    def load(self, captured: Captured, use: Any) -> Chosen | None:
        """The plan that another process has written; None where there is none that can be read."""
        file = self._file(captured, use)
        try:
            return None if file is None else _read(file.read_text())
        except (OSError, ValueError, TypeError, KeyError, InputError):
            return None  # of another make, or damaged: a new one takes its place

    def store(self, captured: Captured, use: Any, chosen: Chosen) -> None:
        """Write a plan for other processes, where JAX writes what it compiles."""
        file = self._file(captured, use)
        if file is None:
            return
        with contextlib.suppress(OSError):  # as for JAX, a cache that cannot be written is none
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as written:
                written.write(json.dumps(asdict(chosen)).encode())

    def _file(self, captured: Captured, use: Any) -> Path | None:
        config: Any = jax.config  # its attributes are made at run time
        folder = config.jax_compilation_cache_dir
        if not folder or "://" in folder or not config.jax_enable_compilation_cache:
            return None
        where = jax.__version__, jax.default_backend(), os.environ.get("XLA_FLAGS", "")
        # The declines that are written with a plan name lines.
        lines = [jax_compat.source_line(e.source_info) for e in equations_in(captured.jaxpr.jaxpr)]
        key = version("mixflow"), where, self._settings, _key(captured, use), lines
        name = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
        return Path(folder, FOLDER, f"{name}.json")


def _read(text: str) -> Chosen:
    found = json.loads(text)
    parse_passes(found["passes"])
    return Chosen(found["passes"], tuple(Remark(**one) for one in found["declines"]))


def _key(captured: Captured, use: Any) -> Any:
    """The same for programs that look alike, in any process."""
    types = tuple(map(_type, captured.jaxpr.in_avals))
    return use, types, _outline(captured.jaxpr.jaxpr)


def _outline(jaxpr: Any) -> tuple[Any, ...]:
    """A program's operations with the types of their results, and how long its loops are."""
    return tuple(
        (
            eqn.primitive.name,
            str(eqn.params.get("length")),
            tuple(_type(var.aval) for var in eqn.outvars),
            tuple(map(_outline, nested_jaxprs(eqn))),
        )
        for eqn in jaxpr.eqns
    )


def _type(aval: Any) -> str:
    return f"{aval!r} {getattr(aval, 'weak_type', False)}"
