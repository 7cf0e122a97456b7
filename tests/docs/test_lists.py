"""Lists of passes in the documentation are those that there are."""

from __future__ import annotations

import re

from pages import DOCS

from mixflow.passes import DEFAULT_PIPELINE, OF_XDSL, PASSES


def first_cells(page: str, head: str) -> list[str]:
    """The names in the first column of the table with this head."""
    text = (DOCS / page).read_text().split(f"\n{head}\n", 1)[1]
    rows = text.split("\n\n", 1)[0].splitlines()[1:]
    return [name for row in rows for name in re.findall(r"`([\w-]+)", row.split("|")[1])]


def test_the_passes_are_explained_in_their_order() -> None:
    names = re.findall(r"[\w-]+", DEFAULT_PIPELINE)
    assert first_cells("how-it-works.md", "| pass | does |") == names
    assert set(names) | set(OF_XDSL) == PASSES.keys()


def test_every_pass_is_a_part_of_plans() -> None:
    explained = first_cells("plans.md", "| part | says |")
    tidying = {"canonicalize", "fuse-value-and-pullback", *OF_XDSL}
    assert set(explained) == PASSES.keys() - tidying | {"canonicalize"}
