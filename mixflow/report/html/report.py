"""A report as one self-contained HTML page, with charts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mixflow.compiler.ir.dialects.remarks import Remark
from mixflow.planner.front import Offer
from mixflow.report.findings import Findings
from mixflow.report.html.charts import peak_chart, timeline_chart
from mixflow.report.html.front import front_chart, front_rows
from mixflow.report.html.ir import side_by_side
from mixflow.report.html.memory import Memory, estimate_memory
from mixflow.report.html.page import render_page, script_of_ours, vega
from mixflow.report.html.plan import Part, draw_plan
from mixflow.report.html.source import CodeLine, excerpt
from mixflow.report.text import HEADS, cells
from mixflow.runtime.measure import Measurement
from mixflow.units import format_bytes


@dataclass(frozen=True)
class Figures:
    """One program's row in the summary, in words; `share` is of the largest temporaries."""

    name: str
    share: float
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Note:
    """A remark with the source around it; `kind` is "rewritten" or "declined"."""

    kind: str
    remark: Remark
    excerpt: tuple[CodeLine, ...]


def render_html(report: Findings) -> str:
    """The report as an HTML page: scripts and all in one file, and no network."""
    programs, memory = report.programs, _memory(report)
    notes = [*_notes("rewritten", report.rewrites), *_notes("declined", report.declined)]
    return render_page(
        "report.html.j2",
        scripts=(vega(), script_of_ours("report.js")),
        report=report,
        version=version("mixflow"),
        headline=_headline(report),
        figures=[_figures(name, row, report) for name, row in report.rows],
        memory=memory,
        charts=_charts(memory, report.front),
        front=front_rows(report.front),
        plan=_plan(report),
        notes=notes,
        passes=sorted({note.remark.by for note in notes}),
        ir=side_by_side(programs.ir_before, programs.ir_after),
        format_bytes=format_bytes,
    )


def _headline(report: Findings) -> str:
    """What has become of the temporaries, in a few words."""
    before, after = report.before.temp_bytes, report.after.temp_bytes
    if before == after:
        return f"{format_bytes(after)} of temporaries, as with plain JAX"
    less, more = sorted((before, after))
    times = f"{more / less:.3g}× " if less else ""
    word = "less" if after < before else "more"
    return f"{format_bytes(after)} of temporaries: {times}{word} than plain JAX's"


def _figures(name: str, row: Measurement, report: Findings) -> Figures:
    most = max(one.temp_bytes for _, one in report.rows)
    figures = zip(HEADS[1:], cells(name, row, report.before)[1:], strict=True)
    return Figures(name, row.temp_bytes / most if most else 0.0, tuple(figures))


def _memory(report: Findings) -> tuple[Memory, ...]:
    """Both programs' memory; nothing where one of them cannot be estimated."""
    programs = report.programs
    before = estimate_memory("plain JAX", programs.closed_before)
    after = estimate_memory("mixflow", programs.closed_after)
    return () if before is None or after is None else (before, after)


def _charts(memory: tuple[Memory, ...], front: tuple[Offer, ...]) -> dict[str, Any]:
    charts = {"front": front_chart(front)} if front else {}
    if not any(one.peak for one in memory):
        return charts
    return {**charts, "timeline": timeline_chart(memory), "peak": peak_chart(memory)}


def _plan(report: Findings) -> Part | None:
    module = report.programs.module
    return None if module is None else draw_plan(module, report.entry)


def _notes(kind: str, remarks: tuple[Remark, ...]) -> list[Note]:
    return [Note(kind, remark, excerpt(remark.at)) for remark in remarks]
