"""Reports: what was rewritten, what was declined, and what it is worth."""

from mixflow.report.report import Report

__all__ = ["Report"]
