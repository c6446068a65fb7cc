"""Looks at a folder as a loader does: is this a checkpoint that works?"""

from paramdelta.check.checker import check
from paramdelta.check.report import Report

__all__ = ["Report", "check"]
