"""The HTML report's text: what it has to say, and what may not get into it or out of it."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jax
import pytest
import shown_program
from loop_programs import ETA, batches, descend, epochs, loss, parameters

import mixflow
from mixflow.compiler.ir.dialects.jaxpr import CheckpointOp
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.dialects.remarks import Remark
from mixflow.planner.pipeline import ROLLED
from mixflow.report.html import memory as html_memory
from mixflow.report.html import report as html_report
from mixflow.report.html.ir import side_by_side
from mixflow.report.html.memory import estimate_memory
from mixflow.report.html.page import render_page
from mixflow.report.html.plan import draw_plan
from mixflow.report.html.source import code_at, excerpt

NASTY = "</script><img src=x onerror=alert(1)><b>\"'&"
GRADIENT = "gradient = jax.grad(loss)(theta, eta, x)  # the inner gradient"
LINES = Path(shown_program.__file__).read_text().splitlines()
GRADIENT_LINE = 1 + next(n for n, line in enumerate(LINES) if GRADIENT in line)


class _Page(HTMLParser):
    """Takes a page apart: its tags, its scripts, and the text outside of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script" and dict(attrs).get("type") == "module":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script" and self.tags[-1][1].get("type") == "module":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data


def test_every_section_says_what_there_is(report, page):
    text = " ".join(_Page(page).text.split())
    for words in (
        *("meta_loss", "plain JAX, checkpointed step", report.plan, "GFLOP"),
        *("inner loop, 3 steps", "level of 3", "segment", "outer value and gradient"),
        *("forward over reverse", "saves its inner gradients"),
        *("rewritten forward-over-reverse", "declined forward-over-reverse", "rounded"),
        *(f"shown_program.py:{GRADIENT_LINE}", " ".join(GRADIENT.split()), "func.func @main"),
    ):
        assert words in text


def test_nothing_but_the_pages_own_scripts_can_run_or_be_fetched(page):
    parsed = _Page(page)
    for _, attributes in parsed.tags:
        assert (attributes.get("href") or "#").startswith("#")
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in parsed.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    for script in parsed.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(parsed.scripts) == policy.count("sha256-") == 2


def test_text_of_a_program_is_escaped(report, page):
    remark = Remark(NASTY, "rewrote", NASTY, f"{NASTY}.py:1")
    nasty = replace(report, entry=NASTY, target=NASTY, plan=NASTY, rewrites=(remark,))
    nasty = replace(nasty, programs=replace(report.programs, ir_before=NASTY, ir_after=""))
    parsed = _Page(nasty.to_html())
    assert not {"img", "b"} & {tag for tag, _ in parsed.tags}
    assert parsed.text.count("onerror=alert(1)") >= 6
    assert len(parsed.scripts) == 2


def test_the_same_report_gives_the_same_page(report, page):
    assert report.to_html() == page


def test_a_program_without_an_ir_or_an_estimate_has_a_page(report, monkeypatch):
    monkeypatch.setattr(html_report, "estimate_memory", lambda *_: None)
    text = _Page(replace(report, programs=replace(report.programs, module=None)).to_html()).text
    assert "cannot be estimated" in text
    assert "The IR does not hold this program" in text


def test_what_draws_pages_is_imported_for_pages_alone():
    code = "import sys, mixflow.cli; sys.exit(bool({'jinja2', 'vl_convert'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- memory -------------------------------------------------------------------------------------


def test_memory_names_values_shapes_and_lines(report):
    memory = estimate_memory("plain JAX", report.programs.closed_before)
    assert memory is not None
    assert memory.highest[0].bytes == memory.peak
    assert sum(one.bytes for one in memory.buffers) + memory.rest == memory.peak
    assert [one.share for one in memory.moments] == sorted(one.share for one in memory.moments)
    (line,) = [line.strip() for line in LINES if "jnp.tanh(x @ theta)" in line]
    found = {(one.value, one.code) for one in memory.moments if "shown_program.py" in one.at}
    assert ("tanh f32[64,8]", line) in found


def test_an_unknown_mesh_axis_leaves_memory_out(report, monkeypatch):
    def unknown(_):
        raise NameError("axis")

    monkeypatch.setattr(html_memory, "peak_memory", unknown)
    assert estimate_memory("plain JAX", report.programs.closed_before) is None


# --- the plan -----------------------------------------------------------------------------------


def _below(part):
    return [part, *(one for inner in part.parts for one in _below(inner))]


def test_the_drawing_has_every_checkpoint_and_pullback(report):
    module = report.programs.module
    parts = _below(draw_plan(module, "meta_loss"))
    ops = list(module.walk())
    checkpoints = [op for op in ops if isinstance(op, CheckpointOp)]
    pullbacks = [op for op in ops if isinstance(op, VjpOp)]
    drawn = [part for part in parts if part.kind in ("step", "segment", "other")]
    assert len(drawn) == len(checkpoints) > 4
    adjoint = [part for part in parts if any("forward over reverse" in note for note in part.notes)]
    assert len(adjoint) == sum(op.rule is not None for op in pullbacks) > 0
    assert sum(part.kind == "pullback" for part in parts) == len(pullbacks) > len(adjoint)


def test_the_drawing_nests_as_the_loops_do(report):
    def titles(part):
        inside = [one for one in part.parts if one.kind in ("loop", "step")]
        return [part.title, *(title for one in inside for title in titles(one))]

    (outer,) = draw_plan(report.programs.module, "meta_loss").parts
    assert titles(outer)[1:] == ["level of 3", "run of steps", "inner loop, 3 steps", "step"]


def drawn_loops(f, *args, passes=None):
    """Title and notes of each loop in a program's drawing."""
    optimised = mixflow.compile(f, passes=passes).optimised(*args)
    parts = _below(draw_plan(optimised.module, "f"))
    return [(part.title, part.notes) for part in parts if part.kind == "loop"]


def test_code_that_was_written_out_says_how_often():
    def unrolled(eta, theta, data):
        for step in range(12):
            theta, _ = descend(theta, eta, jax.tree.map(lambda one, at=step: one[at], data))
        return loss(theta, eta, jax.tree.map(lambda one: one[0], data))

    args, begin = (ETA, parameters(64), batches(12)), f"{ROLLED},forward-over-reverse"
    assert drawn_loops(jax.grad(unrolled), *args, passes=begin) == [
        ("inner loop, 12 steps", ("×12",))
    ]
    nested = f"{begin},checkpoint-inner-loop{{levels=2}}"
    (level, (inner, _)) = drawn_loops(jax.grad(unrolled), *args, passes=nested)
    assert level == ("level of 4", ("reruns its steps going back", "was written out"))
    assert inner == "inner loop, 3 steps"


def test_a_loop_over_loops_is_a_loop_and_no_level():
    def nested(eta, theta, data):
        return epochs(eta, theta, data, count=4)

    args = ETA, parameters(64), batches(4)
    titles = [title for title, _ in drawn_loops(jax.grad(nested), *args)]
    assert titles == ["loop, 4 steps", "inner loop, 4 steps"]


# --- source -------------------------------------------------------------------------------------


def test_an_excerpt_marks_the_line(tmp_path):
    file = tmp_path / "model.py"
    file.write_text("a = 1\nif a:\n    b = 2\n    c = 3\n")
    shown = excerpt(f"{file}:3", around=1)
    assert [(line.number, line.text, line.is_marked) for line in shown] == [
        (2, "if a:", False),
        (3, "    b = 2", True),
        (4, "    c = 3", False),
    ]
    assert [line.text for line in excerpt(f"{file}:4", around=0)] == ["c = 3"]
    assert code_at(f"{file}:4") == "c = 3"


@pytest.mark.parametrize("at", ["<unknown>", "nowhere.py:3", "", "model.py:0", "model.py"])
def test_no_excerpt_of_what_is_not_there(at):
    assert excerpt(at) == ()
    assert code_at(at) == ""


# --- IR -----------------------------------------------------------------------------------------


def _kinds(before, after, **options):
    return [
        row.kind for block in side_by_side(before, after, **options).blocks for row in block.rows
    ]


def test_numbers_and_depth_are_no_change():
    assert _kinds("%1 = mul(%0)\nend", "  %7 = mul(%3)\nend") == ["same", "same"]


def test_changed_parts_are_marked():
    (block,) = side_by_side("a\n%1 = mul {k=1}(%0)\nb", "a\n%1 = mul {k=2}(%0)\nb").blocks
    row = block.rows[1]
    assert row.kind == "changed"
    assert row.old is not None
    assert row.new is not None
    assert (row.old.marked, row.new.marked) == ("1", "2")
    assert row.new.before + row.new.marked + row.new.after == "%1 = mul {k=2}(%0)"


def test_lines_that_are_on_one_side_only():
    assert _kinds("a\nb\nc", "a\nc\nd") == ["same", "gone", "same", "new"]


def test_long_unchanged_stretches_are_folded():
    same = [f"line {letter}" for letter in "abcdefghijkl"]
    blocks = side_by_side("\n".join(["x", *same]), "\n".join(["y", *same])).blocks
    assert [(block.is_folded, len(block.rows)) for block in blocks] == [(False, 4), (True, 9)]


def test_a_large_ir_is_cut_and_says_so(report):
    before = "\n".join(f"%{n} = op{n} " + "x y " * 100 for n in range(5000))
    comparison = side_by_side(before, "")
    assert sum(len(block.rows) for block in comparison.blocks) + comparison.left_out == 5000
    assert comparison.left_out > 0
    large = replace(report, programs=replace(report.programs, ir_before=before, ir_after=before))
    page = large.to_html()
    assert f"{comparison.left_out} more rows are left out here" in page
    assert len(page.encode()) < 3_000_000


def test_pages_without_scripts_allow_none():
    page = render_page(
        "diff.html.j2", title="", sides="", diff=_Empty(), heads=(), entries=(), classes={}
    )
    assert "script-src" not in page
    assert "default-src 'none'" in page


class _Empty:
    warnings = failures = ()
