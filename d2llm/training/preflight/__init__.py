"""Pre-flight: what a run will do, and what would keep it from learning, found out before its first step."""

from d2llm.training.preflight.report import REPORT, Report, preflight

__all__ = ["REPORT", "Report", "preflight"]
