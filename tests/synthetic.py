"""Snapshots made by hand, for tests of what is done with them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from mixflow.report.diff.compare import compare
from mixflow.report.diff.differences import EntryDiff, SnapshotDiff
from mixflow.report.diff.revisions import parse_snapshot
from mixflow.report.snapshot.describe import FORMAT, FORMAT_VERSION, to_text

LINE = "model.py:{}"


def region(path: str, line: int, content: str, **operations: int) -> dict[str, Any]:
    return {
        "path": path,
        "operation": path.rpartition("/")[2].partition("[")[0],
        "at": LINE.format(line),
        "fingerprint": content,
        "own_fingerprint": content,
        "operations": operations,
    }


def program(temp_bytes: int) -> dict[str, Any]:
    return {
        "temp_bytes": temp_bytes,
        "total_bytes": temp_bytes + 1000,
        "flops": 5000.0,
        "bytes_moved": 300.0,
        "eqns": 40,
        "fingerprint": "f0",
        "operations": {
            "by_kind": {"mul": 3, "scan": 1},
            "by_line": {LINE.format(10): 3, LINE.format(12): 1},
            "by_region": {"main": 1, "main/scan[0]": 3},
        },
        "regions": [
            region("main", 1, "around", scan=1),
            region("main/scan[0]", 12, "inside", mul=3),
        ],
        "peak": {"bytes": temp_bytes, "buffers": 1, "alive": [buffer(temp_bytes, 10)]},
        "timeline": {"steps": 1, "points": [[0, temp_bytes, LINE.format(10)]]},
    }


def buffer(size: int, line: int) -> dict[str, Any]:
    return {"bytes": size, "aval": f"f32[{size // 4}]", "at": LINE.format(line), "primitive": "mul"}


def rewrite(name: str, line: int, what: str = "done") -> dict[str, str]:
    return {"pass": name, "at": LINE.format(line), "what": what}


def decline(name: str, line: int, why: str) -> dict[str, str]:
    return {"pass": name, "at": LINE.format(line), "why": why}


def entry() -> dict[str, Any]:
    return {
        "target": "value_and_grad in the first argument",
        "plan": "cse,forward-over-reverse",
        "rewrites": [rewrite("forward-over-reverse", 10), rewrite("checkpoint-inner-loop", 12)],
        "declined": [decline("segment-loss", 10, "the loss is short")],
        "before": program(4000),
        "after": program(1000),
    }


def snapshot(**entries: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "mixflow": "0.1.0",
        "jax": "0.10.2",
        "backend": "cpu",
        "entries": entries or {"meta_loss": entry()},
    }


def moved(value: Any, lines: int) -> Any:
    """The same, with every source line further down."""
    text = json.dumps(value)
    for line in (12, 10, 1):
        text = text.replace(f'model.py:{line}"', f'model.py:{line + lines}"')
    return json.loads(text)


def changed(change: Any) -> dict[str, Any]:
    """A snapshot whose entry was changed in place by a function."""
    found = copy.deepcopy(snapshot())
    change(found["entries"]["meta_loss"])
    return found


def diff_of(old: Any, new: Any) -> SnapshotDiff:
    """The difference, after a way through the file's text."""
    sides = [parse_snapshot(to_text(one), "a file") for one in (old, new)]
    return compare(*sides, ("old.json", "new.json"))


def entry_diff(old: Any, new: Any) -> EntryDiff:
    (found,) = diff_of(old, new).entries
    return found


def write(path: Path, value: Any) -> str:
    path.write_text(to_text(value))
    return path.name
