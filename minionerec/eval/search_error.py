"""What the beam search missed: the whole catalog is scored exactly, and the search is replayed on these scores.

With the score of every prefix, a beam search of any width can be replayed without the model. The replay shows which prefixes it
keeps at each level, at which level and rank it drops the target's, and how its list differs from the exact one.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minionerec.config.documents import parse_json
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.levels import calibrated
from minionerec.recommend.recommender import Recommender
from minionerec.statistics.ranking import gains, hits
from minionerec.tree import CatalogTrie, Normalise, score_prefixes
from minionerec.tree.leaf_component import leaf_model

_CUTOFFS = (1, 10)


@dataclasses.dataclass(frozen=True)
class Trace:
    """What exact scores say of one example.

    Attributes:
        row: its row in the split.
        rank: 0-based rank of the target's SID in the whole catalog.
        widths: per beam width, the 0-based rank of the target in that beam's list; None if the list lacks it.
        overlap: per beam width, the share of the exact top SIDs that the beam's list holds.
        pruned: per beam width, the 1-based level at which the target's prefix was dropped and its 1-based rank among that
            level's candidates, 0 and 0 if it was not dropped.
        confidence: per level, the probability of the most likely code after the target's earlier codes, among the legal codes.
        right: per level, whether that most likely code is the target's.
    """

    row: int
    rank: int
    widths: dict[str, int | None]
    overlap: dict[str, float]
    pruned: dict[str, tuple[int, int]]
    confidence: list[float]
    right: list[bool]


def replay(
    scores: Sequence[np.ndarray], parents: Sequence[np.ndarray], target: Sequence[int], width: int
) -> tuple[list[int], tuple[int, int]]:
    """The beam search of a width, replayed on exact prefix scores.

    Args:
        scores: per level, (prefixes,) what the search orders by: sums of log-probabilities, or with a mixture the bounds.
        parents: per level, (prefixes,) parent numbers.
        target: per level, the number of the target's prefix.

    Returns:
        The SIDs of the list, best first, and the level and rank (1-based) at which the target was dropped, 0 and 0 if never.
    """
    beams, dropped = np.zeros(1, dtype=int), (0, 0)
    for level, (level_scores, above) in enumerate(zip(scores, parents, strict=True)):
        candidates = np.flatnonzero(np.isin(above, beams))
        order = candidates[np.argsort(-level_scores[candidates], kind="stable")]
        if dropped == (0, 0) and (rank := int(np.flatnonzero(order == target[level])[0])) >= width:
            dropped = (level + 1, rank + 1)
        beams = order[:width]
    return beams.tolist(), dropped


def trace(
    recommender: Recommender,
    rows: Sequence[int],
    histories: Sequence[Sequence[int]],
    targets: Sequence[int],
    widths: Sequence[int],
    normalise_over: Normalise = "vocabulary",
) -> list[Trace]:
    """Score the catalog for a batch of examples and replay the search; with a mixture, that of the mixture.

    Args:
        rows: the examples' rows in the split.
        histories: item indices, oldest first.
        targets: item indices.
        widths: beam widths.
        normalise_over: what a step's probabilities add up over.

    Raises:
        ConfigError: the model has a second distribution over the catalog.
    """
    if leaf_model(recommender.model) is not None:
        raise ConfigError(
            "eval.oracle_examples: the search is replayed for models that write code by code only, and this one has a second "
            "distribution over the catalog (model.text_output). Set eval.oracle_examples 0."
        )
    trie = recommender.trie
    input_ids, mask = recommender.encode(histories)
    scores = score_prefixes(recommender.model, input_ids, mask, trie=trie, normalise_over=normalise_over)
    keys, guide = scores, recommender.mixed(trie, histories).prefixes()
    if guide is not None:  # a search orders prefixes by a bound of what is below them
        keys = [guide.bounds(level, of_model) for level, of_model in enumerate(scores)]
        scores = [guide.masses(level, of_model) for level, of_model in enumerate(scores)]
    return traced(trie, scores, keys, rows, targets, widths)


def traced(
    trie: CatalogTrie,
    scores: Sequence[torch.Tensor],
    keys: Sequence[torch.Tensor],
    rows: Sequence[int],
    targets: Sequence[int],
    widths: Sequence[int],
) -> list[Trace]:
    """The traces of a batch of examples whose exact scores are known.

    Args:
        trie: of all SIDs.
        scores: per level, (examples, prefixes) log-probabilities.
        keys: per level, (examples, prefixes) what the search orders by.
        rows, targets, widths: see `trace`.
    """
    # Per level, (examples, prefixes):
    level_scores, level_keys = ([level.double().cpu().numpy() for level in some] for some in (scores, keys))
    nodes = [torch.arange(len(tokens), device=trie.device) for tokens in trie.tokens]
    parents = [trie.parent(level, numbers).cpu().numpy() for level, numbers in enumerate(nodes)]
    path = [trie.leaf_of_item[torch.tensor(targets, device=trie.device)].long()]
    for level in reversed(range(1, trie.depth)):
        path.insert(0, trie.parent(level, path[0]))
    paths = torch.stack(path, dim=1).tolist()
    return [
        _trace_one(
            row, [level[number] for level in level_scores], [level[number] for level in level_keys], parents, path, widths
        )
        for number, (row, path) in enumerate(zip(rows, paths, strict=True))
    ]


def _trace_one(
    row: int,
    scores: list[np.ndarray],
    keys: list[np.ndarray],
    parents: Sequence[np.ndarray],
    path: Sequence[int],
    widths: Sequence[int],
) -> Trace:
    """The trace of one example.

    Args:
        row: its row in the split.
        scores: per level, (prefixes,) sums of log-probabilities.
        keys: per level, (prefixes,) what the search orders by.
        parents: per level, (prefixes,) parent numbers.
        path: per level, the number of the target's prefix.
        widths: beam widths.
    """
    exact = np.argsort(-scores[-1], kind="stable")
    ranks: dict[str, int | None] = {}
    overlap, pruned = {}, {}
    for width in widths:
        listed, dropped = replay(keys, parents, path, width)
        ranks[str(width)] = listed.index(path[-1]) if path[-1] in listed else None
        overlap[str(width)] = len(set(listed) & set(exact[: len(listed)].tolist())) / len(listed)
        pruned[str(width)] = dropped
    confidence, right = [], []
    for level, (level_scores, above) in enumerate(zip(scores, parents, strict=True)):
        siblings = np.flatnonzero(above == (path[level - 1] if level else 0))
        chances = np.exp(level_scores[siblings] - level_scores[siblings].max())  # less the maximum: no underflow
        confidence.append(float(chances.max() / chances.sum()))
        right.append(bool(siblings[chances.argmax()] == path[level]))
    rank = int(np.flatnonzero(exact == path[-1])[0])
    return Trace(row, rank, ranks, overlap, pruned, confidence, right)


def summary(traces: Sequence[Trace], num_beams: int) -> dict[str, Any] | None:
    """The section `search` of `metrics.json`; None if there are no traces.

    Returns:
        `rows`; `num_beams`, the width of the run's own search; `exact`, HR and NDCG of the exact list (its first `num_beams`
        SIDs); `widths`, per beam width HR and NDCG of the replayed beam at the cut-offs that it reaches, `overlap` with the
        exact list, and `missed`, the share of examples whose target is in the exact list but not in the beam's; `pruned`, at
        `num_beams`, per level the share of examples whose target was dropped there and the median rank it had; `calibration`,
        per level as `levels.calibrated`, after the target's own codes.
    """
    if not traces:
        return None
    exact = np.array([trace.rank for trace in traces], dtype=float)
    widths: dict[str, Any] = {}
    for width in traces[0].widths:
        in_beam = [trace.widths[width] for trace in traces]
        ranks = np.array([np.inf if rank is None else rank for rank in in_beam], dtype=float)
        missed = (exact < int(width)) & ~np.isfinite(ranks)
        overlap = float(np.mean([trace.overlap[width] for trace in traces]))
        widths[width] = {**_metrics(ranks, int(width)), "overlap": overlap, "missed": float(missed.mean())}
    pruned = []
    for level in range(1, len(traces[0].right) + 1):
        drops = [trace.pruned[str(num_beams)] for trace in traces]
        ranks_here = [rank for dropped_at, rank in drops if dropped_at == level]
        rank = float(np.median(ranks_here)) if ranks_here else None
        pruned.append({"level": level, "dropped": len(ranks_here) / len(traces), "rank": rank})
    confidence, right = (np.array([getattr(trace, name) for trace in traces], dtype=float) for name in ("confidence", "right"))
    return {
        "rows": len(traces),
        "num_beams": num_beams,
        "exact": _metrics(np.where(exact < num_beams, exact, np.inf), num_beams),
        "widths": widths,
        "pruned": pruned,
        "calibration": [
            {"level": level + 1, **calibrated(confidence[:, level], right[:, level])} for level in range(right.shape[1])
        ],
    }


def _metrics(ranks: np.ndarray, width: int) -> dict[str, float]:
    cutoffs = [k for k in _CUTOFFS if k <= width]
    return {
        **{f"HR@{k}": float(hits(ranks, k).mean()) for k in cutoffs},
        **{f"NDCG@{k}": float(gains(ranks, k).mean()) for k in cutoffs},
    }


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """One JSON object per line, through a temporary name."""
    temporary = path.with_name(path.name + ".tmp")
    lines = (json.dumps(dataclasses.asdict(trace), separators=(",", ":")) + "\n" for trace in traces)
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)


def read_traces(path: Path) -> list[Trace]:
    """Read what `write_traces` wrote.

    Raises:
        ArtifactError: a line is malformed (the message names it).
    """
    traces = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values: Mapping[str, Any] = parse_json(line)
            pruned = {width: (int(level), int(rank)) for width, (level, rank) in values["pruned"].items()}
            traces.append(Trace(**{**values, "pruned": pruned}))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path}, line {number}: not a trace of this version ({error}). Evaluate again.") from None
    return traces
