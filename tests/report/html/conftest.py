"""One report for all tests of its page: compiling it takes longer than any of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shown_program import meta_loss

from mixflow.planner.front import CHOSEN, PLAIN, Offer
from mixflow.report.report import Report


@pytest.fixture(scope="session")
def report() -> Report:
    # It is compiled by passes, so nothing was planned: the front is made up.
    found = meta_loss.report()
    front = Offer(4e6, 1.0, "", (PLAIN,)), Offer(3e6, 0.7, "cse"), Offer(1e6, 0.8, "dce", (CHOSEN,))
    return replace(found, front=front)


@pytest.fixture(scope="session")
def page(report: Report) -> str:
    return report.to_html()
