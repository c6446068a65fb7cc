"""Looks at a folder as a loader does: is this a checkpoint that works?"""

from paramdelta.checks.checker import check
from paramdelta.checks.report import Report

__all__ = ["Report", "check"]
