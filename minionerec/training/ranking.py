"""Exact ranks and ranked lists over the whole catalog. Ranks become metrics in `statistics.ranking`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from accelerate.utils import gather_object
from torch import Tensor

from minionerec.data.dataset import SplitName
from minionerec.distributed import distributed_state
from minionerec.errors import TrainingError
from minionerec.statistics.ranking import per_user
from minionerec.training.history_rows import HistoryRows
from minionerec.training.ranking_data import Protocol, RankingData

Scorer = Callable[[HistoryRows], Tensor]  # scores of all items and padding, (rows, items + 1); -inf is never recommended
TABLE_CUTOFFS = (1, 5, 10, 20)  # of the published tables
CHUNK = 512  # rows at once
DIVERGED = "A recommender's scores are not numbers: its training diverged. Lower its learning_rate."


class Ranking(NamedTuple):
    """How a recommender ranks a split, row by row.

    Attributes:
        ranks: 0-based rank of each target among all candidates, (rows,) float; infinity if it is never recommended.
        lists: the best item ids, best first, at most `top` per row.
        left_out: as `ranks`, if the items of the user's history are no candidates, (rows,) float; a target in the history is
            then never recommended. None if not asked for.
    """

    ranks: np.ndarray
    lists: list[np.ndarray]
    left_out: np.ndarray | None = None


def candidates(scores: Tensor, rows: HistoryRows, protocol: Protocol) -> Tensor:
    """Scores as the protocol ranks them, with its rules for padding and history. The tensor is changed in place.

    Raises:
        TrainingError: a score is not a number.
    """
    if scores.isnan().any():
        raise TrainingError(DIVERGED)
    if not protocol.ranks_padding:
        scores[:, 0] = -torch.inf
    if protocol.hides_history:
        _set_history(scores, rows, 0.0)
    return scores


def without_history(scores: Tensor, rows: HistoryRows) -> Tensor:
    """Scores with which no item of a user's whole history is a candidate. The tensor is changed in place."""
    _set_history(scores, rows, -torch.inf)
    return scores


def _set_history(scores: Tensor, rows: HistoryRows, value: float) -> None:
    row, cell = rows.cells(rows.seen)
    scores[torch.from_numpy(row), torch.from_numpy(rows.flat[cell].astype(np.int64))] = value


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """0-based ranks, (rows,) float64: how many candidates have a higher score, or the same score and a lower id."""
    target_scores = scores.gather(1, targets[:, None])
    higher = (scores > target_scores).sum(1).double()
    tied_before = scores == target_scores
    tied_before &= torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return (higher + tied_before.sum(1)).masked_fill(target_scores[:, 0].isneginf(), torch.inf)


def ranked(scores: Tensor, top: int) -> list[np.ndarray]:
    """The `top` best ids per row, ties by id; items that score -inf are left out."""
    top = min(top, scores.shape[1])
    values, ids = scores.topk(top)
    ids, values = ids.gather(1, order := ids.argsort(dim=1)), values.gather(1, order)
    ids = ids.gather(1, values.argsort(dim=1, descending=True, stable=True))
    last = values.amin(1, keepdim=True)
    # If more candidates tie with the last of the list than fit, topk took any of them: sort such rows whole.
    crowded = ((scores >= last).sum(1) > top) & ~last[:, 0].isneginf()
    for row in crowded.nonzero()[:, 0].tolist():
        ids[row] = scores[row].argsort(dim=0, descending=True, stable=True)[:top]
    counts = (~scores.gather(1, ids).isneginf()).sum(1).tolist()
    return [row[:count].numpy() for row, count in zip(ids.cpu(), counts, strict=True)]


def rank_split(score: Scorer, data: RankingData, split: SplitName, top: int = 0, left_out: bool = False) -> Ranking:
    """Rank the catalog for every row of a split. The launcher's processes share the rows, and each gets the whole result.

    Args:
        top: length of the lists; 0 makes none.
        left_out: rank without the items of each history, too.

    Raises:
        TrainingError: a score is not a number.
    """
    rows = data.rows[split]
    state = distributed_state()
    share = np.array_split(np.arange(len(rows)), state.num_processes)[state.process_index]
    parts: list[Ranking] = []
    for start in range(0, len(share), CHUNK):
        part = rows.take(share[start : start + CHUNK])
        scores = candidates(score(part), part, data.protocol)
        targets = torch.from_numpy(part.target.astype(np.int64)).to(scores.device)
        ranks, lists = target_ranks(scores, targets).cpu().numpy(), ranked(scores, top) if top else []
        without = target_ranks(without_history(scores, part), targets).cpu().numpy() if left_out else None
        parts.append(Ranking(ranks, lists, without))
    if state.num_processes > 1:
        parts = gather_object(parts)
    return Ranking(
        np.concatenate([part.ranks for part in parts]),
        [ids for part in parts for ids in part.lists],
        np.concatenate([part.left_out for part in parts if part.left_out is not None]) if left_out else None,
    )


def choosing_ranks(score: Scorer, data: RankingData, exclude_history: bool) -> np.ndarray:
    """The ranks on valid that choose an epoch, (rows,): by the rule for the history that the lists will be measured with.

    Raises:
        TrainingError: a score is not a number.
    """
    ranking = rank_split(score, data, "valid", left_out=exclude_history)
    return ranking.ranks if ranking.left_out is None else ranking.left_out


def ranking_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Mean HR, NDCG and MRR at `TABLE_CUTOFFS` of 0-based ranks, by name."""
    return {name: float(values.mean()) for name, values in per_user(ranks, TABLE_CUTOFFS).items()}


def frame(data: RankingData, split: SplitName, ranking: Ranking) -> pl.DataFrame:
    """A ranking as a table, one row per example: user, target, rank (0-based; infinite if never recommended), items, and
    `rank_left_out`, the rank among the items outside the history.

    Items are 0-based, as in a Dataset; -1 is the padding row, which the protocol `wearec` ranks too.
    """
    rows = data.rows[split]
    return pl.DataFrame(
        {
            "user": [data.users[user] for user in rows.user],
            "target": pl.Series(rows.target - 1, dtype=pl.Int32),
            "rank": pl.Series(ranking.ranks, dtype=pl.Float64),
            "rank_left_out": pl.Series(ranking.left_out, dtype=pl.Float64),
            "items": pl.Series([ids - 1 for ids in ranking.lists], dtype=pl.List(pl.Int32)),
        }
    )
