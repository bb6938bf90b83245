"""BIGRec (Bao et al., arXiv 2308.08434): a model writes the next item's title freely, and the nearest titles are recommended.

An item's distance is that of its title to the written one: the Euclidean distance of their embeddings, the last layer's state
at the last token, after the final norm. All distances are computed, in float64, so the ranking is exact; equal titles have one
embedding, and their items are tied. `grounding.json` has the metrics in expectation over ties too, and those with each target
at the best of its tied ranks, as BIGRec has them.

The distances may be weighed with popularity or with a sequential recommender (`eval.title_assistant`): an item with distance d
and score s has d' (1 + s')^-w instead, where ' scales a row's values over the catalog to 0..1. So the nearest title stays first
whatever its score. The weight w is chosen on the valid split, or set (`eval.title_weight`).

Deviations: the embeddings are made of the title alone in both cases, cut to what the model reads; one weight, that of the best
NDCG@10, decides the lists, while BIGRec chooses one for each metric (figures with these are in `grounding.json`).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from minionerec.artifacts import CHECKPOINTS, over_shards, read_json, shards_of, write_json
from minionerec.config import Config, EvalConfig, TitleHelperName
from minionerec.data.dataset import Dataset, SplitName
from minionerec.data.interactions import interaction_counts
from minionerec.data.vectors import load_vectors
from minionerec.distributed import is_main_process
from minionerec.errors import ArtifactError
from minionerec.eval.decode import Clock
from minionerec.eval.lists import cutoffs_within
from minionerec.model.checkpoint import context_of
from minionerec.prompts.builder import Prompts
from minionerec.prompts.titles import catalog_titles, one_line
from minionerec.statistics.ranking import per_user
from minionerec.statistics.sampling import evenly_spaced
from minionerec.tree import left_pad

GROUNDING, TITLES = "grounding.json", "titles.json"
METRIC = "NDCG@10"  # chooses the weight of the lists
WEIGHTS = (*(hundredth / 100 for hundredth in range(100)), *map(float, range(1, 100)))  # that BIGRec tries
_BLOCK = 256  # rows whose distances are held at once

Scores = Callable[[pl.DataFrame], np.ndarray]  # of rows of a split: (rows, items), or (1, items) if the same for all


@dataclass(frozen=True)
class Written:
    """What a model wrote for rows of a split.

    Attributes:
        split: its name.
        examples: the rows; the column `row` has their places in the split.
        texts: (rows,) the titles.
        milliseconds: what writing one took; None if unknown.
    """

    split: SplitName
    examples: pl.DataFrame
    texts: list[str]
    milliseconds: float | None = None


@dataclass(frozen=True)
class Grounded:
    """A split, ranked.

    Attributes:
        rankings: per row the nearest items, nearest first; equal distances in catalog order.
        best: (rows,) the 0-based rank of the target if it came first among the items at its distance; infinite if left out.
        ties: (rows,) how many items are at its distance.
        measured: the metrics, items at one distance tied in expectation, of every weight.
    """

    rankings: list[np.ndarray]
    best: np.ndarray
    ties: np.ndarray
    measured: dict[float, dict[str, float]]


def embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int | None, batch_size: int
) -> np.ndarray:
    """Embeddings of texts: the model's last state at the last token, (texts, hidden) float32.

    Texts of one length share a batch, so nothing is padded, and equal texts have equal embeddings. A text without tokens is
    the end token alone.

    Args:
        limit: tokens that the model reads; a longer text loses its end. None if unlimited.
    """
    tokens = [ids[:limit] or [tokenizer.eos_token_id] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    places: dict[tuple[int, ...], list[int]] = {}
    for place, ids in enumerate(tokens):
        places.setdefault(tuple(ids), []).append(place)
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for ids in places:
        by_length.setdefault(len(ids), []).append(ids)
    vectors = np.empty((len(tokens), model.config.get_text_config(decoder=True).hidden_size), dtype=np.float32)
    for alike in by_length.values():
        for start in range(0, len(alike), batch_size):
            batch = alike[start : start + batch_size]
            with torch.no_grad():
                states = cast(Any, model.base_model)(input_ids=torch.tensor(batch, device=model.device)).last_hidden_state[
                    :, -1
                ]
            for ids, state in zip(batch, states.float().cpu().numpy(), strict=True):
                vectors[places[ids]] = state
    return vectors


def write_titles(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], config: EvalConfig
) -> Iterator[str]:
    """What the model writes after each prompt: beam search over all tokens, the best beam, in the prompts' order.

    The generation settings of the checkpoint play no part.
    """
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    for start in range(0, len(prompts), config.batch_size):
        batch = prompts[start : start + config.batch_size]
        ids, mask = left_pad(batch, tokenizer.pad_token_id, model.device)
        with torch.no_grad():
            written = cast(Any, model).generate(
                input_ids=ids,
                attention_mask=mask,
                num_beams=config.title_beams,
                max_new_tokens=config.title_tokens,
                do_sample=False,
                length_penalty=1.0,
                early_stopping=False,
            )
        yield from tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)


def scores_of(name: TitleHelperName, run: Path, dataset: Dataset, split: SplitName) -> Scores:
    """What the distances of a split's rows are weighed with: training interactions, or the scores of a run's baseline.

    Raises:
        ArtifactError: the baseline left no vectors, or they belong to other data.
    """
    if name == "popularity":
        counts = interaction_counts(dataset)[None].astype(np.float64)
        return lambda examples: counts
    vectors = load_vectors(run, name, dataset, "eval.title_assistant")
    return lambda examples: vectors.scores(split, examples["row"].to_numpy())


def weighing(distances: np.ndarray, scores: np.ndarray) -> Callable[[float], np.ndarray]:
    """For a weight, distances that are the smaller the higher an item's score is, (rows, items); 0 leaves them as they are.

    Both are scaled once for all weights.

    Args:
        distances: (rows, items).
        scores: (rows, items) or (1, items).

    Returns:
        a function of the power, 0 or above.
    """
    near, raised = _scaled(distances), 1 + _scaled(scores)
    return lambda weight: near * raised**-weight if weight else distances.copy()


def _scaled(values: np.ndarray) -> np.ndarray:
    """Each row's values from 0, its least, to 1, its greatest; 0 if all are equal."""
    least, greatest = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    return (values - least) / np.where(greatest > least, greatest - least, 1)


def ground(
    written: np.ndarray,
    titles: Sequence[str],
    embedded: np.ndarray,
    examples: pl.DataFrame,
    config: EvalConfig,
    scores: Scores | None = None,
    weights: Sequence[float] = (0.0,),
) -> Grounded:
    """Rank the catalog for every row by the distance of its items' titles to what was written.

    Args:
        written: (rows, hidden) embeddings of the texts that the model wrote.
        titles: of all items.
        embedded: (items, hidden) their embeddings; those of equal titles are equal.
        examples: the rows; histories are left out with `eval.exclude_history`.
        scores: what the distances are weighed with; None for nothing.
        weights: as `weighing` takes them. The first decides the rankings; all are measured, on the same distances.
    """
    rankings: list[np.ndarray] = []
    places: dict[float, list[np.ndarray]] = {weight: [] for weight in weights}
    for block, distances in _blocks(written, titles, embedded, examples):
        with_weight = None if scores is None else weighing(distances, scores(block))
        for weight, found in places.items():
            near = distances if with_weight is None else with_weight(weight)
            found.append(_places(near, block, config))
            if weight == weights[0]:
                for row in near:
                    listed = np.isfinite(row).sum()
                    rankings.append(np.argsort(row, kind="stable")[: min(config.num_beams, listed)])
    best, ties = np.concatenate(places[weights[0]], axis=1)
    return Grounded(rankings, best, ties, _metrics(places, config))


def _metrics(places: dict[float, list[np.ndarray]], config: EvalConfig) -> dict[float, dict[str, float]]:
    """The means of the metrics for each weight, from the `_places` of all blocks."""
    cutoffs = cutoffs_within(config.num_beams)
    joined = {weight: np.concatenate(parts, axis=1) for weight, parts in places.items()}
    return {weight: _means(per_user(best, cutoffs, ties)) for weight, (best, ties) in joined.items()}


def _blocks(
    written: np.ndarray, titles: Sequence[str], embedded: np.ndarray, examples: pl.DataFrame
) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
    """Some rows and their distances, (rows, items) float64, until all rows had theirs."""
    first, title_of = np.unique(titles, return_index=True, return_inverse=True)[1:]
    vectors = torch.from_numpy(embedded[first]).double()
    for start in range(0, len(examples), _BLOCK):
        block = torch.from_numpy(written[start : start + _BLOCK]).double()
        # Not by a matrix product: its rounding would make near distances equal, or order them in another way.
        by_title = torch.cdist(block, vectors, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        yield examples[start : start + _BLOCK], by_title[:, title_of]


def _places(near: np.ndarray, examples: pl.DataFrame, config: EvalConfig) -> np.ndarray:
    """`best` and `ties` of `Grounded`, (2, rows). With `eval.exclude_history` the histories' distances become infinite."""
    if config.exclude_history:
        for row, history in zip(near, examples["history"].to_list(), strict=True):
            row[history] = np.inf
    own = near[np.arange(len(near)), examples["target"].to_numpy()][:, None]
    listed = np.isfinite(own[:, 0])
    places = np.stack([(near < own).sum(axis=1), (near == own).sum(axis=1)])
    return np.where(listed, places, [[np.inf], [1.0]])


def rows_of(dataset: Dataset, split: SplitName, most: int | None = None) -> pl.DataFrame:
    """Rows of a split, with their places in it in the column `row`: all, or at most `most`, evenly spaced."""
    examples = dataset.split(split).with_row_index("row")
    return examples[evenly_spaced(len(examples), most or len(examples))]


def write_split(
    model: PreTrainedModel,
    prompts: Prompts,
    folder: Path,
    config: EvalConfig,
    split: SplitName,
    examples: pl.DataFrame,
    clock: Clock,
) -> list[str]:
    """The titles that a model writes for rows of a split; every process of a launch writes its share.

    They are stored in shards, so an interrupted evaluation resumes.

    Args:
        folder: of the artefact.
        examples: the rows.
        clock: runs while this process writes titles; with Ray, whose workers write them, it does not.

    Returns:
        the titles, row by row, in the main process; nothing in others.

    Raises:
        ArtifactError: a process did not finish its share, or a stored shard has not a title for each of its rows.
    """
    asked = [prompt.tokens for prompt in prompts.title_prompts(examples["history"].to_list(), config.title_tokens)]
    store = folder / CHECKPOINTS
    store.mkdir(exist_ok=True)
    shards = {store / f"rows-{rows.start:09d}-{rows.stop:09d}.json": rows for rows in shards_of(len(asked), config.shard_size)}

    def write(rows: range, path: Path) -> None:
        began = time.perf_counter()
        texts = write_titles(model, prompts.tokenizer, [asked[row] for row in rows], config)
        titles = [one_line(prompts.written_title(text)) for text in texts]
        clock.add(len(titles), time.perf_counter() - began)
        write_json(path, titles)

    over_shards(shards, write, f"titles {split}", "examples")
    return _joined(shards) if is_main_process() else []


def _joined(shards: Mapping[Path, range]) -> list[str]:
    """The titles of all shards, in the order of the rows."""
    joined: list[str] = []
    for path, rows in shards.items():
        advice = "Delete it and run the same command again."
        try:
            texts = read_json(path)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: no shard of titles ({error}). {advice}") from None
        if (count := len(texts) if isinstance(texts, list) else 0) != len(rows):
            raise ArtifactError(f"{path}: {count} titles for {len(rows)} rows. {advice}")
        joined += texts
    return joined


def rank_split(
    written: Written,
    valid: Written | None,
    prompts: Prompts,
    embedder: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    folder: Path,
    config: Config,
    clock: Clock,
) -> tuple[Grounded, float]:
    """A split, ranked by the nearest titles, and the weight. Writes `titles.json`, what the model wrote, and `grounding.json`.

    Args:
        valid: what the weight is chosen by; None if it is set, or nothing weighs the distances.
        embedder: the model, and its tokenizer, whose states are the embeddings.
        clock: runs while the split's lists are made, and not while the weight is chosen.

    Raises:
        ArtifactError: a baseline that weighs the distances left no vectors, or they belong to other data.
        DataError: an item has no title.
    """
    titles, limit, dataset = catalog_titles(prompts, "eval.grounding"), context_of(embedder[0]), prompts.dataset
    texts = [*titles, *written.texts, *(valid.texts if valid else [])]  # at once: equal texts then have equal embeddings
    began = time.perf_counter()
    vectors = embed(*embedder, texts, limit, config.eval.batch_size)
    embedded, of_split, of_valid = np.split(vectors, [len(titles), len(titles) + len(written.texts)])
    scores, weight = None, config.eval.title_weight or 0.0
    weighing: dict[str, Any] = {}
    chosen: dict[str, float] = {}
    if (assistant := config.eval.title_assistant) is not None:
        scores = scores_of(assistant, config.folder, dataset, written.split)
        if valid is not None:
            chooses = time.perf_counter()
            of = scores_of(assistant, config.folder, dataset, valid.split)
            tried = ground(of_valid, titles, embedded, valid.examples, config.eval, of, WEIGHTS).measured
            chosen = {metric: max(WEIGHTS, key=lambda each: (tried[each][metric], -each)) for metric in tried[0]}
            weight = chosen[METRIC]
            weighing["valid"] = {"examples": len(valid.texts), METRIC: {str(each): tried[each][METRIC] for each in WEIGHTS}}
            began += time.perf_counter() - chooses
    weights = (weight,) if assistant is None else (weight, 0.0, *chosen.values())
    grounded = ground(of_split, titles, embedded, written.examples, config.eval, scores, weights)
    clock.add(len(grounded.rankings), time.perf_counter() - began)
    if assistant is not None:
        weighing |= {
            "assistant": assistant,
            "weight": weight,
            "without": grounded.measured[0],
            "weight_per_metric": chosen,
            "with_weight_per_metric": {metric: grounded.measured[own][metric] for metric, own in chosen.items()},
        }
    known, counts = set(titles), Counter(titles)
    tokens = embedder[1](titles, add_special_tokens=False)["input_ids"]
    cutoffs = cutoffs_within(config.eval.num_beams)
    write_json(folder / TITLES, written.texts)
    write_json(
        folder / GROUNDING,
        {
            "items": len(titles),
            "items_that_share_a_title": sum(count for count in counts.values() if count > 1),
            "titles_too_long_to_write": sum(len(answer) - 1 > config.eval.title_tokens for answer in prompts.title_answers),
            "titles_cut": 0 if limit is None else sum(len(ids) > limit for ids in tokens),
            "written_in_catalog": sum(text in known for text in written.texts) / len(written.texts),
            "written_nothing": sum(not text for text in written.texts),
            "tied_in_expectation": _means(per_user(grounded.best, cutoffs, grounded.ties)),
            "best_of_tied": _means(per_user(grounded.best, cutoffs)),
            **({"weighing": weighing} if weighing else {}),
        },
    )
    return grounded, weight


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(row.mean()) for name, row in values.items()}
