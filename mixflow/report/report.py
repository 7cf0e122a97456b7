"""One entry's report, and its forms: text, markdown and HTML."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from mixflow.report.findings import Findings, Programs
from mixflow.report.text import render_markdown, render_text
from mixflow.runtime.sides import Sides


@dataclass(frozen=True)
class Report(Findings):
    """What mixflow did to a program: printed, a table."""

    def to_markdown(self) -> str:
        """For a pull request or a wiki."""
        return render_markdown(self)

    def to_html(self) -> str:
        """One self-contained page, with charts; `docs/reports.md` says how to read it."""
        # What draws the page is needed for pages alone.
        from mixflow.report.html.report import render_html  # noqa: PLC0415

        return render_html(self)

    def __str__(self) -> str:
        return render_text(self)


def make_report(sides: Sides, *, verify: bool) -> Report:
    """Put the figures of an entry's programs side by side.

    Arguments:
        sides: the programs, compiled.
        verify: whether to compare plain and optimised results.
    """
    outcome = sides.outcome
    before, after = sides.traced()
    return Report(
        entry=sides.entry,
        target=sides.target,
        jax=jax.__version__,
        backend=jax.default_backend(),
        before=sides.before.measurement,
        after=sides.after.measurement,
        checkpointed=sides.checkpointed(),
        plan=outcome.passes,
        front=sides.front(),
        rewrites=sides.rewrites,
        declined=sides.declined,
        verified=sides.verified() if verify else None,
        programs=Programs(
            sides.before,
            sides.after,
            sides.optimised,
            before,
            after,
            sides.text_before(),
            outcome.text,
            outcome.module,
        ),
    )
