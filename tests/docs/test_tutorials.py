"""The quick start and the tutorials: every Python block runs, and prints what the page shows."""

from __future__ import annotations

import re
from typing import Any

import jax
import pytest
from pages import blocks
from support import once

PAGES = (
    "quick-start.md",
    "tutorials/data-weighting.md",
    "tutorials/maml.md",
    "tutorials/hyperparameters.md",
    "from-scratch.md",
)
SHOWN_FROM = "0.10.2"  # the version of JAX that the pages' outputs are from

_NUMBER = re.compile(r"\d[\d.e+-]*×?")
_NEAR = re.compile(r"results differ by at most \S+ relative \(float32\)|the results are equal")
_TABLE = re.compile(r"[\s\u2500-\u257f]+")


def words(output: str) -> str:
    """An output without its numbers, which differ between runs, and its lines.

    How far results are apart in float32, and whether at all, differs with the machine code.
    """
    return _TABLE.sub(" ", _NUMBER.sub("0", _NEAR.sub("results agree", output))).strip()


@once
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_run_and_print_what_the_page_shows(page: str) -> None:
    namespace: dict[str, Any] = {"__name__": page}
    with jax.enable_x64(False):  # as readers have it
        for block in blocks(page):
            printed = block.run(namespace)
            assert bool(printed) == bool(block.shown)
            if jax.__version__ == SHOWN_FROM:
                assert words(printed) == words(block.shown)


def test_words_keep_all_but_numbers() -> None:
    assert words("┃ mixflow │ 3.4 MiB │ 14.46× ┃\n") == "mixflow 0 MiB 0"
    assert words("a: 6.0e-08 relative") != words("b: 6.0e-08 relative")


def test_words_tell_results_that_agree_from_those_that_were_not_compared() -> None:
    assert words("verified: results differ by at most 6.0e-08 relative (float32)") == words(
        "verified: the results are equal"
    )
    assert words("verified: the results are equal") != words("verified: not asked for")
