"""Evaluation: predictions, metrics with intervals, and where along the SID a recommendation goes wrong."""

from minionerec.eval.levels import level_tables
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import hit_rate, mrr, ndcg

__all__ = ["RankedLists", "hit_rate", "level_tables", "mrr", "ndcg"]
