"""The report of a run: tables, plots and pictures in one static HTML file."""

from __future__ import annotations

from simo_merge.report.contents import AlignmentRow, FeatureCloud, Panel, PanelCell, Report
from simo_merge.report.html import write_report

__all__ = ["AlignmentRow", "FeatureCloud", "Panel", "PanelCell", "Report", "write_report"]
