"""A report as a table on a terminal, and as markdown."""

from __future__ import annotations

import io

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from mixflow.planner.front import Offer
from mixflow.planner.pipeline import PREPARE
from mixflow.report.findings import Findings
from mixflow.runtime.measure import Measurement
from mixflow.units import format_bytes

FRONT = "what a memory budget buys: bytes in all, and time beside plain JAX's, by estimate"

HEADS = ("program", "temporaries", "ratio", "GFLOP", "equations", "compile", "run")


def cells(name: str, row: Measurement, before: Measurement) -> tuple[str, ...]:
    """A program's row under `HEADS`: its name, and its figures beside plain JAX's."""
    return (
        name,
        format_bytes(row.temp_bytes),
        f"{before.temp_bytes / row.temp_bytes:.2f}×" if row.temp_bytes else "-",
        "?" if row.flops is None else f"{row.flops / 1e9:.3g}",
        f"{row.eqns}",
        f"{row.compile_s:.1f} s",
        "-" if row.run_s is None else f"{1e3 * row.run_s:.3g} ms",
    )


def render(report: Findings) -> Group:
    """The report for rich's console."""
    title = f"{report.entry}: {report.target} (JAX {report.jax}, {report.backend})"
    table = Table(title=title, title_justify="left", title_style="bold")
    for position, head in enumerate(HEADS):
        table.add_column(head, justify="left" if position == 0 else "right", no_wrap=True)
    for name, row in report.rows:
        table.add_row(*cells(name, row, report.before))
    return Group(table, _plan(report), *_front(report), *_remarks(report), *_verdict(report))


def _plan(report: Findings) -> Text:
    words = report.plan or "the program is left as it is"
    return Text.assemble(("plan  ", "bold"), words)


def offer_cells(offer: Offer) -> tuple[str, str, str]:
    """A plan of the front: its bytes, its time beside plain JAX's, and what it is or does."""
    words = ", ".join(offer.names) or offer.passes.removeprefix(f"{PREPARE},")
    return format_bytes(int(offer.total_bytes)), f"{offer.time:.2f}×", words


def _front(report: Findings) -> list[Text]:
    if not report.front:
        return []
    lines = [Text(FRONT, style="bold")]
    for offer in report.front:
        size, time, words = offer_cells(offer)
        lines.append(Text(f"  {size:>9}  {time:>6}  {words}"))
    return lines


def _remarks(report: Findings) -> list[Text]:
    lines = [Text("rewrites" if report.rewrites else "rewrites: none", style="bold")]
    lines += [Text(f"  {r.at}  {r.by}: {r.text}") for r in report.rewrites]
    if report.declined:
        lines.append(Text("declined", style="bold"))
        lines += [Text(f"  {r.at}  {r.by}: {r.text}") for r in report.declined]
    return lines


def _verdict(report: Findings) -> list[Text]:
    if report.verified is None:
        return []
    return [Text(f"verified: {report.verified.words}")]


def render_text(report: Findings) -> str:
    """The report as plain text."""
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(render(report), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def render_markdown(report: Findings) -> str:
    """The report as GitHub's markdown."""
    lines = [f"### {report.entry}", "", f"{report.target}; JAX {report.jax}, {report.backend}", ""]
    lines += [_row(HEADS), _row(["---", *("---:" for _ in HEADS[1:])])]
    lines += [_row(cells(name, row, report.before)) for name, row in report.rows]
    lines += ["", f"**Plan** {f'`{report.plan}`' if report.plan else _plan(report).plain}"]
    if report.front:
        lines += ["", f"**{FRONT.capitalize()}**", "", _row(("bytes", "time", "plan"))]
        lines += [_row(("---:", "---:", "---"))]
        lines += [_row(offer_cells(offer)) for offer in report.front]
    for head, remarks in (("Rewrites", report.rewrites), ("Declined", report.declined)):
        lines += ["", f"**{head}**", ""]
        lines += [f"- `{r.at}` {r.by}: {r.text}" for r in remarks] or ["- none"]
    lines += ["", *(text.plain for text in _verdict(report))]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
