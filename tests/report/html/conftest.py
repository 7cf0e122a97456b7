"""One report for all tests of its page: compiling it takes longer than any of them."""

from __future__ import annotations

import pytest
from shown_program import meta_loss

from mixflow.report.report import Report


@pytest.fixture(scope="session")
def report() -> Report:
    return meta_loss.report()


@pytest.fixture(scope="session")
def page(report: Report) -> str:
    return report.to_html()
