"""The house: each folder stands on a floor, and knows only the floors below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mixflow"

COMPILER = ("jaxprs", "rules", "barriers", "derivative", "memory", "capture", "ir", "analysis")
FLOORS = (
    "mixflow.errors",
    "mixflow.files",
    "mixflow.units",
    "mixflow.compiler",
    *(f"mixflow.compiler.{room}" for room in COMPILER),
    "mixflow.passes",
    "mixflow.planner",
    "mixflow.runtime",
    "mixflow.runtime.artifact",
    "mixflow.runtime.bench",
    "mixflow.report",
    "mixflow.report.snapshot",
    "mixflow.report.html",
    "mixflow.report.diff",
    "mixflow.report.report",
    "mixflow.report.files",
    "mixflow.commands",
    "mixflow.cli",
    "mixflow",
)
"""From the ground up. A module stands on the floor that its name begins with, the longest such."""

WHEN_CALLED = (
    ("mixflow.runtime.function", "mixflow.report.report"),
    ("mixflow.runtime.function", "mixflow.runtime.sides"),
)
"""`CompiledFunction.report` imports what makes a report when it is called."""


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """The modules of mixflow that one imports, those in functions and for types included."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)


def floor_of(module: str) -> int:
    named = [name for name in FLOORS if f"{module}.".startswith(f"{name}.")]
    return FLOORS.index(max(named, key=len))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_knows_no_floor_above(module: str) -> None:
    above = {one for one in imports(module) if floor_of(one) > floor_of(module)}
    allowed = {above for below, above in WHEN_CALLED if below == module}
    assert above <= allowed


def test_no_circle() -> None:
    graph = nx.DiGraph((module, one) for module in MODULES for one in imports(module))
    graph.remove_edges_from(WHEN_CALLED)
    assert list(nx.simple_cycles(graph)) == []


def test_no_room_is_crowded() -> None:
    """Beyond a dozen files nobody finds one; `passes` has as many as there are passes."""
    crowded = {
        folder: len(files)
        for folder in (PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir()))
        if len(files := [file for file in folder.glob("*.py") if file.stem != "__init__"]) > 13
    }
    assert crowded == {}
