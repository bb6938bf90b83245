"""The ranking evaluator: exact ranks and ranked lists over the whole catalog. Ranks become metrics in `eval.metrics`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from minionerec.baselines.batches import Rows, make_batch
from minionerec.baselines.models.recommender import Recommender
from minionerec.baselines.ranking_data import Protocol, Task
from minionerec.data.dataset import SplitName
from minionerec.distributed import distributed_state
from minionerec.errors import TrainingError

Scorer = Callable[[Rows], Tensor]  # scores of all items and padding, (rows, items + 1); -inf is never recommended
_CHUNK = 512  # rows at once


class Ranking(NamedTuple):
    """What a recommender makes of a split, row by row.

    Attributes:
        ranks: 0-based rank of each target among all candidates, (rows,) float; infinity where it is never recommended.
        lists: the best item ids, best first, at most `top` per row.
    """

    ranks: np.ndarray
    lists: list[np.ndarray]


def scorer(model: Recommender, max_history: int, protocol: Protocol, device: torch.device) -> Scorer:
    """How a neural baseline scores rows, in evaluation mode and without gradient."""

    def score(rows: Rows) -> Tensor:
        batch = make_batch(rows, layout=model.layout, side=protocol.side, max_history=max_history)
        with torch.no_grad():
            return model.eval().scores(batch.to(device)).float()

    return score


def candidates(scores: Tensor, rows: Rows, protocol: Protocol) -> Tensor:
    """Scores as the protocol ranks them: padding and history dealt with. The tensor is changed in place.

    Raises:
        TrainingError: a score is not a number.
    """
    if scores.isnan().any():
        raise TrainingError("A baseline's scores are not numbers: its training diverged. Lower baseline.learning_rate.")
    if not protocol.ranks_padding:
        scores[:, 0] = -torch.inf
    if protocol.hides_history:
        lengths = rows.stop - rows.seen
        row = np.repeat(np.arange(len(rows)), lengths)
        cell = rows.seen[row] + np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        scores[torch.from_numpy(row), torch.from_numpy(rows.flat[cell].astype(np.int64))] = 0.0
    return scores


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """0-based ranks, (rows,) float64: candidates with a higher score, and those with the same and a lower id, come first."""
    own = scores.gather(1, targets[:, None])
    rank = (scores > own).sum(1).double()
    tied = scores == own
    tied &= torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return (rank + tied.sum(1)).masked_fill(own[:, 0].isneginf(), torch.inf)


def ranked(scores: Tensor, top: int) -> list[np.ndarray]:
    """The `top` best ids per row, ties by id, without those that score -inf."""
    top = min(top, scores.shape[1])
    values, ids = scores.topk(top)
    ids, values = ids.gather(1, order := ids.argsort(dim=1)), values.gather(1, order)
    ids = ids.gather(1, values.argsort(dim=1, descending=True, stable=True))
    last = values.amin(1, keepdim=True)
    # Where more candidates tie with the last of the list than fit, topk chose any of them: such rows are sorted whole.
    crowded = ((scores >= last).sum(1) > top) & ~last[:, 0].isneginf()
    for row in crowded.nonzero()[:, 0].tolist():
        ids[row] = scores[row].argsort(dim=0, descending=True, stable=True)[:top]
    kept = (~scores.gather(1, ids).isneginf()).sum(1).tolist()
    return [row[:count].numpy() for row, count in zip(ids.cpu(), kept, strict=True)]


def rank(score: Scorer, task: Task, split: SplitName, top: int = 0) -> Ranking:
    """Rank the catalog for every row of a split; ranks of the launcher share the rows and all get the whole result.

    Args:
        top: length of the lists; 0 makes none.

    Raises:
        TrainingError: a score is not a number.
    """
    rows = task.rows[split]
    state = distributed_state()
    share = np.array_split(np.arange(len(rows)), state.num_processes)[state.process_index]
    found: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for start in range(0, len(share), _CHUNK):
        part = rows.take(share[start : start + _CHUNK])
        scores = candidates(score(part), part, task.protocol)
        targets = torch.from_numpy(part.target.astype(np.int64)).to(scores.device)
        found.append((target_ranks(scores, targets).cpu().numpy(), ranked(scores, top) if top else []))
    if state.num_processes > 1:
        found = gather_object(found)
    return Ranking(np.concatenate([ranks for ranks, _ in found]), [one for _, lists in found for one in lists])
