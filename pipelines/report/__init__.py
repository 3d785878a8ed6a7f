"""The report: one HTML page about a catalog, with players, pictures and charts inside.

from pipelines.report import ReportOptions, write_report
write_report(Storage("out/demo"), ReportOptions(sample=24))
"""

from __future__ import annotations

from pipelines.report.page import REPORT, ReportOptions, report_page, write_report

__all__ = ["REPORT", "ReportOptions", "report_page", "write_report"]
