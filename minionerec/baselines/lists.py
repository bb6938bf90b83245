"""How long the lists of a baseline are, and how wide a baseline searches that writes codes."""

from minionerec.baselines.ranking import TABLE_CUTOFFS
from minionerec.baselines.ranking_data import RankingData
from minionerec.config import Config


def list_length(config: Config, data: RankingData) -> int:
    """Items in the stored lists: `baseline.top`, or more if `eval` will take each history out of them."""
    top = config.baseline.top
    if not config.eval.exclude_history or config.baseline.protocol != "dataset":
        return top
    return max(top, config.eval.num_beams + longest_history(data))


def search_beams(config: Config, data: RankingData) -> int:
    """Beams of a generative baseline's search, no fewer than a list has items.

    An item that no beam reached has no rank. So there are enough beams for the metrics' longest list to be full after the items
    of any history have left it, whatever `baseline.top` is.
    """
    return max(list_length(config, data), max(TABLE_CUTOFFS) + longest_history(data))


def longest_history(data: RankingData) -> int:
    """The most items that a row of valid or test has before its target, those included that no model reads."""
    return max(int((rows.stop - rows.seen).max()) for split, rows in data.rows.items() if split != "train")
