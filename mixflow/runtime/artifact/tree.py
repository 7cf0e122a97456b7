"""Containers of arrays as JSON: dicts with text keys, lists, tuples and None."""

from __future__ import annotations

from typing import Any

from jax.tree_util import tree_structure

from mixflow.compiler.jaxprs.values import TreeDef

_LEAF, _NONE = "*", "none"


def describe_tree(tree: TreeDef) -> Any:
    """A tree of containers as JSON holds it, an array as "*".

    Returns:
        None where a container is of another kind (a named tuple, a module): to make one takes
        its Python class.
    """
    container = tree.node_data()
    if container is None:
        return _LEAF
    kind, keys = container
    if kind is type(None):
        return _NONE
    children = [describe_tree(child) for child in tree.children()]
    if any(child is None for child in children):
        return None
    if kind is dict and all(isinstance(key, str) for key in keys):
        return {"dict": dict(zip(keys, children, strict=True))}
    return {kind.__name__: children} if kind in (list, tuple) else None


def restore_tree(described: Any) -> TreeDef:
    """The tree that `describe_tree` described.

    Raises:
        ValueError: it describes none.
    """
    return tree_structure(_skeleton(described))


def _skeleton(described: Any) -> Any:
    """A tree with zeros for arrays."""
    if described == _NONE:
        return None
    if described == _LEAF:
        return 0
    match described:
        case {"dict": dict(items)}:
            return {key: _skeleton(child) for key, child in items.items()}
        case {"list": list(children)}:
            return [_skeleton(child) for child in children]
        case {"tuple": list(children)}:
            return tuple(_skeleton(child) for child in children)
        case _:
            raise ValueError(f"{str(described)[:40]!r} is no container")
