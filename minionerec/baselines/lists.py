"""How long the lists of a baseline are, and how wide a baseline searches that writes codes."""

from collections.abc import Iterator
from contextlib import contextmanager

from minionerec.baselines.coded.coded_model import GenerativeModel
from minionerec.config import Config
from minionerec.model.sequential.sequential_model import SequentialModel
from minionerec.training.ranking import TABLE_CUTOFFS
from minionerec.training.ranking_data import RankingData, longest_history, stored_length


def leaves_history_out(config: Config) -> bool:
    """Whether `eval` takes each history out of a baseline's lists; a file of sequences is ranked as its protocol has it."""
    return config.baseline.protocol == "dataset" and config.eval.exclude_history


def list_length(config: Config, data: RankingData) -> int:
    """Items in the stored lists: `baseline.top`, or more if `eval` will take each history out of them."""
    top = config.baseline.top
    return stored_length(top, config, data) if leaves_history_out(config) else top


def search_beams(config: Config, data: RankingData) -> int:
    """Beams of a generative baseline's search, no fewer than a list has items.

    An item that no beam reached has no rank. So there are enough beams for the metrics' longest list to be full after the items
    of any history have left it, whatever `baseline.top` is.
    """
    return max(list_length(config, data), max(TABLE_CUTOFFS) + longest_history(data))


@contextmanager
def as_wide_as_choosing_needs(model: SequentialModel, left_out: int = 0) -> Iterator[None]:
    """Let a generative model search with as many beams as the longest list of the tables has items, and no more.

    Afterwards it searches as wide as its final lists need. That takes several times as long, and an epoch is chosen by a metric
    of the first places.

    Args:
        left_out: how many items of a history leave a list, at most, before it is measured.
    """
    if not isinstance(model, GenerativeModel):
        yield
        return
    beams, model.lists = model.lists, min(model.lists, max(TABLE_CUTOFFS) + left_out)
    try:
        yield
    finally:
        model.lists = beams
