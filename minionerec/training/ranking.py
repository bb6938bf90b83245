"""Exact ranks and ranked lists over the whole catalog. Ranks become metrics in `statistics.ranking`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from accelerate.utils import gather_object
from torch import Tensor

from minionerec.data.dataset import SplitName
from minionerec.data.history_rows import HistoryRows
from minionerec.distributed import distributed_state
from minionerec.errors import TrainingError
from minionerec.statistics.ranking import per_user
from minionerec.training.ranking_data import Protocol, RankingData

Scorer = Callable[[HistoryRows], Tensor]  # scores of all items and padding, (rows, items + 1); -inf is never recommended
TABLE_CUTOFFS = (1, 5, 10, 20)  # of the published tables
CHUNK = 512  # rows at once
TIES = {"ties": "in expectation"}  # settings of lists whose table has the ties; earlier versions stored none
DIVERGED = "A recommender's scores are not numbers: its training diverged. Lower its learning_rate."


class Ranking(NamedTuple):
    """How a recommender ranks a split, row by row.

    Attributes:
        ranks: 0-based rank of each target among all candidates, (rows,) float; infinity if it is never recommended. If
            candidates tie with it, the best rank that their orders give it.
        ties: how many candidates share its score, and so this rank and the following ones, itself included, (rows,) float; 1
            in a protocol whose ids decide.
        lists: the best item ids, best first, at most `top` per row.
        left_out: as `ranks`, if the items of the user's history are no candidates, (rows,) float; a target in the history is
            then never recommended. None if not asked for.
        left_out_ties: as `ties`, for `left_out`.
    """

    ranks: np.ndarray
    ties: np.ndarray
    lists: list[np.ndarray]
    left_out: np.ndarray | None = None
    left_out_ties: np.ndarray | None = None


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


def target_ranks(scores: Tensor, targets: Tensor, expects_ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """0-based ranks of the targets, and how many candidates tie at each and the following ranks, both (rows,) float64.

    A rank is how many candidates have a higher score. If `expects_ties` is false, those with the same score and a lower id come
    before the target, too, and nothing ties. A target that scores -inf has rank infinity and ties with nothing.
    """
    target_scores = scores.gather(1, targets[:, None])
    ranks = (scores > target_scores).sum(1).double()
    equal = scores == target_scores
    if expects_ties:
        ties = equal.sum(1).double()
    else:
        ranks += (equal & (torch.arange(scores.shape[1], device=scores.device) < targets[:, None])).sum(1)
        ties = torch.ones_like(ranks)
    never = target_scores[:, 0].isneginf()
    return ranks.masked_fill(never, torch.inf).cpu().numpy(), ties.masked_fill(never, 1).cpu().numpy()


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
    parts = _ranked_in_parts(score, rows.take(share), data.protocol, top, left_out)
    if state.num_processes > 1:
        parts = gather_object(parts)
    return _joined(parts, left_out)


def rank_rows(score: Scorer, rows: HistoryRows, protocol: Protocol, top: int = 0, left_out: bool = False) -> Ranking:
    """As `rank_split`, but this process ranks all of the rows alone."""
    return _joined(_ranked_in_parts(score, rows, protocol, top, left_out), left_out)


def _ranked_in_parts(score: Scorer, rows: HistoryRows, protocol: Protocol, top: int, left_out: bool) -> list[Ranking]:
    parts: list[Ranking] = []
    for start in range(0, len(rows), CHUNK):
        part = rows.take(np.arange(start, min(start + CHUNK, len(rows))))
        scores = candidates(score(part), part, protocol)
        targets = torch.from_numpy(part.target.astype(np.int64)).to(scores.device)
        ranks, ties = target_ranks(scores, targets, protocol.expects_ties)
        lists = ranked(scores, top) if top else []
        without = target_ranks(without_history(scores, part), targets, protocol.expects_ties) if left_out else (None, None)
        parts.append(Ranking(ranks, ties, lists, *without))
    return parts


def _joined(parts: list[Ranking], left_out: bool) -> Ranking:
    return Ranking(
        np.concatenate([part.ranks for part in parts]),
        np.concatenate([part.ties for part in parts]),
        [ids for part in parts for ids in part.lists],
        np.concatenate([part.left_out for part in parts if part.left_out is not None]) if left_out else None,
        np.concatenate([part.left_out_ties for part in parts if part.left_out_ties is not None]) if left_out else None,
    )


def choosing_ranks(score: Scorer, data: RankingData, exclude_history: bool) -> tuple[np.ndarray, np.ndarray]:
    """The ranks on valid that choose an epoch, and their ties, (rows,): by the rule for the history of the measured lists.

    Raises:
        TrainingError: a score is not a number.
    """
    ranking = rank_split(score, data, "valid", left_out=exclude_history)
    if ranking.left_out is None or ranking.left_out_ties is None:
        return ranking.ranks, ranking.ties
    return ranking.left_out, ranking.left_out_ties


def ranking_metrics(ranks: np.ndarray, ties: np.ndarray) -> dict[str, float]:
    """Mean HR, NDCG and MRR at `TABLE_CUTOFFS` of 0-based ranks, in expectation over ties, by name."""
    return {name: float(values.mean()) for name, values in per_user(ranks, TABLE_CUTOFFS, ties).items()}


def split_metrics(ranking: Ranking, split: SplitName) -> dict[str, float]:
    """`ranking_metrics` of a split, with the history kept and with it left out, by name."""
    assert ranking.left_out is not None and ranking.left_out_ties is not None
    kept = ranking_metrics(ranking.ranks, ranking.ties)
    left_out = ranking_metrics(ranking.left_out, ranking.left_out_ties)
    both = {**kept, **{without_histories(name): value for name, value in left_out.items()}}
    return {f"{split} {name}": value for name, value in both.items()}


def without_histories(metric: str) -> str:
    """The name of a metric of lists from which the history is left out.

    >>> without_histories("NDCG@10")
    'NDCG@10, history left out'
    """
    return f"{metric}, history left out"


def frame(data: RankingData, split: SplitName, ranking: Ranking) -> pl.DataFrame:
    """A ranking as a table, one row per example: user, target, rank (0-based; infinite if never recommended), ties (how many
    candidates share it and the following ranks), items, and `rank_left_out` and `ties_left_out` among the items outside the
    history.

    Items are 0-based, as in a Dataset; -1 is the padding row, which the protocol `wearec` ranks too.
    """
    rows = data.rows[split]
    return pl.DataFrame(
        {
            "user": [data.users[user] for user in rows.user],
            "target": pl.Series(rows.target - 1, dtype=pl.Int32),
            "rank": pl.Series(ranking.ranks, dtype=pl.Float64),
            "ties": pl.Series(ranking.ties, dtype=pl.Int32),
            "rank_left_out": pl.Series(ranking.left_out, dtype=pl.Float64),
            "ties_left_out": pl.Series(ranking.left_out_ties, dtype=pl.Int32),
            "items": pl.Series([ids - 1 for ids in ranking.lists], dtype=pl.List(pl.Int32)),
        }
    )
