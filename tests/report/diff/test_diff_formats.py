"""The forms of a diff: what each has to show, and what none may let through."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import synthetic as made

from mixflow.report.diff.differences import Failure
from mixflow.report.diff.html import render_html
from mixflow.report.diff.markdown import MOST_CHARACTERS, render_markdown
from mixflow.report.diff.text import render_text

NASTY = "<script>alert(1)</script> | `x` **b** @team [a](http://b) \n\n# head"


def eventful():
    """A snapshot in which everything has changed."""

    def change(entry):
        entry["plan"] = "cse"
        entry["rewrites"] = [made.rewrite("segment-loss", 20, "LATER")]
        entry["declined"] = [made.decline("forward-over-reverse", 10, "REASON")]
        entry["after"] = made.program(2000)
        entry["after"]["regions"][1] = made.region("main/scan[0]", 12, "changed", mul=2)
        entry["after"]["operations"]["by_line"]["model.py:30"] = 9

    return {**made.changed(change), "jax": "0.12.0"}


FORMS = {"text": render_text, "markdown": render_markdown, "html": render_html}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_what_changed_and_where(form):
    diff = replace(
        made.diff_of(made.snapshot(), eventful()),
        failures=(Failure("--max-memory +5%", "meta_loss", "too much"),),
    )
    text = FORMS[form](diff)
    for words in (
        *("meta_loss", "old.json", "new.json", "0.10.2", "0.12.0", "+100.00%", "model.py:10"),
        *("LATER", "REASON", "the loss is short", "model.py:30", "-1 mul", "--max-memory +5%"),
        *("LOST", "checkpoint-inner-loop", "cse,forward-over-reverse", "too much", "f32[500]"),
    ):
        assert words in re.sub(r"&#(\d+);", lambda code: chr(int(code[1])), text)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_the_same_is_short(form):
    text = FORMS[form](made.diff_of(made.snapshot(), made.snapshot()))
    assert "same" in text
    assert "1000" not in text


@pytest.mark.parametrize("form", FORMS)
def test_a_change_that_no_region_shows_is_said(form):
    def change(entry):
        entry["after"]["fingerprint"] = "f1"

    text = FORMS[form](made.diff_of(made.snapshot(), made.changed(change)))
    assert "meta_loss: same" not in text
    assert "a custom derivative rule differs" in text


# --- short comments -----------------------------------------------------------------------------


def test_a_comment_has_what_is_the_same_in_one_line():
    names = ("a", "b", "meta_loss")
    old = made.snapshot(**{name: made.entry() for name in names})
    new = made.snapshot(**{name: made.entry() for name in names})
    new["entries"]["meta_loss"]["after"] |= {"temp_bytes": 2000, "fingerprint": "f1"}
    lines = render_markdown(made.diff_of(old, new)).splitlines()
    assert "2 entries are the same: a, b" in lines
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| figure", "| ---", "| temporaries"]
    (same,) = [line for line in lines if line.startswith("The same: ")]
    assert "FLOPs 5,000, bytes moved 300 B, equations 40, " in same


def gained(count):
    def change(entry):
        entry["rewrites"] += [made.rewrite("segment-loss", 20 + n) for n in range(count)]

    return made.changed(change)


def test_a_comment_folds_long_lists_and_shows_short_ones():
    short, long = (
        render_markdown(made.diff_of(made.snapshot(), gained(count))) for count in (5, 6)
    )
    assert "**rewrites gained**" in short
    assert "<details>" not in short
    assert "<details><summary>rewrites gained: 6</summary>" in long
    assert long.count("segment-loss") == 6


# --- text that comes from somebody else ---------------------------------------------------------


def nasty():
    def change(entry):
        entry["rewrites"] = [{"pass": NASTY, "at": NASTY, "what": NASTY}]
        entry["plan"] = entry["target"] = NASTY

    found = made.changed(change)["entries"]["meta_loss"]
    return {**made.snapshot(**{NASTY: found}), "jax": NASTY}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_whole_and_escaped():
    old = made.snapshot(**{NASTY: made.entry()})
    page = _Page()
    page.feed(render_html(made.diff_of(old, nasty())))
    assert not page.open
    assert not {"script", "b", "a", "link", "img", "iframe"} & set(page.tags)


def test_markdown_is_escaped():
    text = render_markdown(made.diff_of(made.snapshot(**{NASTY: made.entry()}), nasty()))
    outside = re.sub(r"`[^`\n]*`", "", text)
    for bad in ("<script", "**b**", "@team", "](http", "\n# head"):
        assert bad not in outside


# --- the longest comment ------------------------------------------------------------------------


def crowded(items: int, entries: int = 1):
    """Many items of each kind; each has a line of its own, so nothing matches."""

    def entry(number: int):
        found = made.entry()
        found["after"] = made.program(2000 + number)
        found["rewrites"] = [
            made.rewrite("segment-loss", 9000 + n, f"G{n} {'word ' * 9}") for n in range(items)
        ]
        found["declined"] = [
            made.decline("segment-loss", 1000 + n, "why " * 200) for n in range(items)
        ]
        found["after"]["regions"] = [
            made.region(f"main/scan[{n}]", 500 + n, f"r{n}", mul=n + 1) for n in range(items)
        ]
        return found

    names = [f"entry_{number}" for number in range(entries)]
    old = made.snapshot(**{name: made.entry() for name in names})
    return made.diff_of(old, made.snapshot(**{name: entry(9) for name in names}))


@pytest.mark.parametrize(("items", "entries"), [(5, 1), (400, 1), (1500, 1), (30, 40), (0, 300)])
def test_markdown_fits_a_comment(items, entries):
    text = render_markdown(crowded(items, entries))
    assert len(text) <= MOST_CHARACTERS
    assert "entry_0" in text
    assert "temporaries" in text
    assert ("left out" in text or "more entries" in text) == (items * entries > 5 or entries > 40)


def test_what_matters_least_is_shortened_first():
    text = render_markdown(crowded(400))
    assert "rewrites LOST" in text
    assert text.count("forward-over-reverse") >= 1
    assert text.count("G") > 300
    assert "`main/scan" not in text


def test_many_failures_are_shortened_and_counted():
    many = tuple(Failure("--max-memory 0", f"e{n}", "x" * 300) for n in range(3000))
    text = render_markdown(replace(crowded(0, 300), failures=many))
    assert len(text) <= MOST_CHARACTERS
    assert re.search(r"and \d+ more checks that failed", text)
