"""Evaluation: predictions, metrics with intervals, and where along the SID a recommendation goes wrong."""

from minionerec.eval.levels import level_tables
from minionerec.eval.lists import RankedLists

__all__ = ["RankedLists", "level_tables"]
