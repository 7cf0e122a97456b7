"""The troubleshooting page has an entry for every reason that mixflow gives for a decline."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from pages import DOCS

from mixflow.compiler.rules.replay import Replay
from mixflow.compiler.rules.suspects import OPAQUE
from mixflow.passes.forward_over_reverse import POLICY
from mixflow.passes.save_inner_gradients import UNREAD

PACKAGE = DOCS.parent / "mixflow"
CALLS = {"decline", "declined", "Decline", "UnsupportedProgram"}
FUNCTIONS = {"_unsuitable", "_impure", "_looked_through", "_effects", "_reasons"}
SHORTEST = 12
"""Shorter pieces of text are names of passes and such."""


def literals(node: ast.AST) -> Iterator[str]:
    """The pieces of text in an expression, without what is filled in."""
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value.strip()


def reasons() -> Iterator[str]:
    """What the compiler says in its own words, where it declines something."""
    for path in (PACKAGE / "compiler").rglob("*.py"):
        yield from _reasons_in(ast.parse(path.read_text()))
    for path in (PACKAGE / "passes").glob("*.py"):
        yield from _reasons_in(ast.parse(path.read_text()))


def _reasons_in(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "id", getattr(function, "attr", ""))
            if name in CALLS:
                yield from literals(node)
        elif isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS:
            spoken = (n for n in ast.walk(node) if isinstance(n, (ast.Return, ast.Yield)))
            for one in spoken:
                yield from literals(one)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "why":
            yield from literals(node.value)


CONSTANTS = (
    POLICY,
    *UNREAD.split("{}"),
    *OPAQUE.values(),
    *(replay.value for replay in Replay),
)
REASONS = sorted({reason for reason in (*reasons(), *CONSTANTS) if len(reason) >= SHORTEST})


@pytest.mark.parametrize("reason", REASONS)
def test_it_is_on_the_page(reason: str) -> None:
    page = " ".join((DOCS / "troubleshooting.md").read_text().split())
    assert reason.strip(" ,:;(") in page


def test_reasons_are_found() -> None:
    assert "the step has effects, which must not happen twice" in REASONS
    assert any(reason.startswith("the program uses mutable") for reason in REASONS)
