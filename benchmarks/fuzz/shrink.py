"""From a program that fails to a short one that fails in the same way.

Statements, arguments and elements are left out, and expressions replaced by their parts, as long as
the failure stays. Nothing here knows what a program is about: it sees Python's syntax tree. Most of
what it tries is no program at all, which is found out in a millisecond.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

Fails = Callable[[str], bool]
Edit = tuple[ast.AST, str, Any]
"""A node, one of its fields, and what the field is to be."""


def shrink(source: str, fails: Fails) -> str:
    """A shorter source that still fails: no single edit makes it shorter.

    Arguments:
        source: a source that fails.
        fails: whether a source fails in the same way; false for what is no program.
    """
    tree = ast.parse(source)
    while _shortened(tree, fails):
        pass
    return ast.unparse(tree) + "\n"


def _shortened(tree: ast.Module, fails: Fails) -> bool:
    """Make every edit with which the tree still fails; whether there was one."""
    kept = tried = 0
    while (edit := next(islice(_edits(tree), tried, None), None)) is not None:
        node, field, new = edit
        old = getattr(node, field)
        setattr(node, field, new)
        if _text_fails(tree, fails):
            kept += 1  # the next edit has this one's number now
        else:
            setattr(node, field, old)
            tried += 1
    return kept > 0


def _text_fails(tree: ast.Module, fails: Fails) -> bool:
    try:
        source = ast.unparse(tree)
        ast.parse(source)
    except Exception:  # an edit may leave half a node, which has no text
        return False
    return fails(source)


def _edits(tree: ast.Module) -> Iterator[Edit]:
    """Every way to make a tree a bit smaller, what is near its root first."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if isinstance(value, list):
                for i, item in enumerate(value):
                    yield node, field, [*value[:i], *value[i + 1 :]]
                    if isinstance(item, (ast.If, ast.For)):
                        yield node, field, [*value[:i], *item.body, *value[i + 1 :]]
                    for part in _parts(item):
                        yield node, field, [*value[:i], part, *value[i + 1 :]]
            else:
                for part in _parts(value):
                    yield node, field, part


def _parts(node: Any) -> Iterator[ast.expr]:
    """The expressions that an expression is made of; of a whole number, the one before it."""
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 1:
        yield ast.Constant(node.value - 1)
    if isinstance(node, ast.expr):
        yield from (part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr))
