"""How long the lists of a baseline are, how wide a baseline searches that writes codes, and what chooses its best epoch."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minionerec.baselines.coded.coded_model import GenerativeModel
from minionerec.baselines.models.sequential_model import SequentialModel
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


@contextmanager
def as_wide_as_choosing_needs(model: SequentialModel) -> Iterator[None]:
    """Let a generative model search with as many beams as the longest list of the tables has items, and no more.

    Afterwards it searches as wide as its final lists need. That takes several times as long, and an epoch is chosen by a metric
    of the first places.
    """
    if not isinstance(model, GenerativeModel):
        yield
        return
    beams, model.lists = model.lists, min(model.lists, max(TABLE_CUTOFFS))
    try:
        yield
    finally:
        model.lists = beams


def choosing_rows(data: RankingData, config: Config) -> RankingData:
    """The data with those rows of valid that choose the best epoch, `baseline.valid_examples` drawn by the seed, in order."""
    valid, count = data.rows["valid"], config.baseline.valid_examples
    if count is None or count >= len(valid):
        return data
    drawn = np.sort(np.random.default_rng([config.seed, len(valid)]).choice(len(valid), count, replace=False))
    return dataclasses.replace(data, rows={**data.rows, "valid": valid.take(drawn)})
