"""Snapshots: what is worth keeping of a program's optimisation, byte by byte the same each time."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import jax

from mixflow.compiler.ir.dialects.remarks import Remark
from mixflow.report.snapshot.canonical import without_addresses
from mixflow.report.snapshot.program import describe_program
from mixflow.runtime.sides import Sides

FORMAT, FORMAT_VERSION = "mixflow-snapshot", 1
_WIDTH = 140

Snapshot = dict[str, Any]
"""JSON; `docs/graph-diffs.md` lists the fields."""


def with_entries(entries: dict[str, Any]) -> Snapshot:
    """A snapshot made of entries, by this version of everything."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "mixflow": version("mixflow"),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "entries": entries,
    }


def describe_entry(sides: Sides) -> dict[str, Any]:
    """One entry: its meta-gradient by plain JAX (`before`) and by mixflow (`after`).

    Arguments:
        sides: both, compiled; where they were timed, the times are in field `measured`.
    """
    outcome, closed = sides.outcome, sides.traced()
    unchanged = sides.optimised.with_options(passes="", memory_budget=None, autotune=False)
    before, after = unchanged.optimised(*sides.args).module, outcome.module
    entry: dict[str, Any] = {
        "target": sides.target,
        "plan": outcome.passes,
        "rewrites": _remarks(sides.rewrites, "what"),
        "declined": _remarks(sides.declined, "why"),
        "before": describe_program(closed[0], before, sides.before.measurement),
        "after": describe_program(closed[1], after, sides.after.measurement),
    }
    return {**entry, "measured": _measured(sides)} if sides.run else entry


def _remarks(remarks: tuple[Remark, ...], text: str) -> list[dict[str, str]]:
    return [{"pass": one.by, "at": one.at, text: without_addresses(one.text)} for one in remarks]


def _measured(sides: Sides) -> dict[str, Any]:
    found = {"before": sides.before.measurement, "after": sides.after.measurement}
    return {side: {"compile_s": one.compile_s, "run_s": one.run_s} for side, one in found.items()}


def before_and_after(snapshot: Snapshot) -> tuple[Snapshot, Snapshot]:
    """Two snapshots out of one: plain JAX's programs, and mixflow's."""
    entries: dict[str, Any] = snapshot["entries"]
    plain = {
        name: {**entry, "after": entry["before"], "plan": "", "rewrites": [], "declined": []}
        for name, entry in entries.items()
    }
    return {**snapshot, "entries": plain}, snapshot


def to_text(snapshot: Snapshot) -> str:
    """The file's text: keys in order, and what is short on one line."""
    return _lines(snapshot, "") + "\n"


def _lines(value: Any, indent: str) -> str:
    short = json.dumps(value, sort_keys=True)
    if len(indent) + len(short) <= _WIDTH or not isinstance(value, (dict, list)) or not value:
        return short
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_lines(value[key], deeper)}" for key in sorted(value)]
        return f"{{\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}}}"
    items = [_lines(item, deeper) for item in value]
    return f"[\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}]"
