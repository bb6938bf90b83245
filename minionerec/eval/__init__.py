"""Evaluation: predictions, metrics with intervals, and where along the SID a recommendation goes wrong."""

from minionerec.eval.levels import level_tables
from minionerec.eval.metrics import hit_rate, ndcg

__all__ = ["hit_rate", "level_tables", "ndcg"]
