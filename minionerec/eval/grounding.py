"""BIGRec (Bao et al., arXiv 2308.08434): a model writes the next item's title freely, and the nearest titles are recommended.

An item's distance is that of its title to the written one: the Euclidean distance of their embeddings, the last layer's state
at the last token, after the final norm. All distances are computed, in float64, so the ranking is exact; equal titles have one
embedding, and their items stand in catalog order. `grounding.json` has the metrics with such items tied in expectation, and
with each at the best of the tied ranks, as BIGRec has them.

Deviations: the embeddings are made of the title alone in both cases, cut to what the model reads; nothing weighs the distances
with popularity or a sequential recommender (BIGRec chooses such a weight for each metric).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from minionerec.artifacts import CHECKPOINTS, over_shards, read_json, shards_of, write_json
from minionerec.config import EvalConfig
from minionerec.errors import DataError
from minionerec.eval.lists import cutoffs_within
from minionerec.model.checkpoint import context_of
from minionerec.prompts.builder import Prompts
from minionerec.statistics.ranking import per_user

GROUNDING, TITLES = "grounding.json", "titles.json"
_BLOCK = 256  # rows whose distances are held at once


@dataclass(frozen=True)
class Grounded:
    """A split, ranked.

    Attributes:
        rankings: per row the nearest items, nearest first; equal distances in catalog order.
        best: (rows,) the 0-based rank of the target if it came first among the items at its distance; infinite if left out.
        ties: (rows,) how many items are at its distance.
    """

    rankings: list[np.ndarray]
    best: np.ndarray
    ties: np.ndarray


def catalog_titles(prompts: Prompts) -> list[str]:
    """The titles of all items, as prompts show them.

    Raises:
        DataError: an item has no title, so nothing could be nearest to it.
    """
    titles = [one_line(title) for title in prompts.titles]
    if "" in titles:
        item = titles.index("")
        missing = titles.count("")
        raise DataError(
            f"{missing} of {len(titles)} items have no title, the first is item {item} "
            f"({prompts.dataset.catalog['item_id'][item]!r}). eval.grounding ranks items by their titles: give every item one, "
            "or set eval.grounding none."
        )
    return titles


def one_line(text: str) -> str:
    """A text without line breaks and repeated spaces."""
    return " ".join(text.split())


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
        longest = max(map(len, batch))
        padding = [longest - len(prompt) for prompt in batch]
        ids = torch.tensor(
            [[tokenizer.pad_token_id] * pad + list(prompt) for pad, prompt in zip(padding, batch, strict=True)],
            device=model.device,
        )
        mask = torch.arange(longest) >= torch.tensor(padding)[:, None]
        with torch.no_grad():
            written = cast(Any, model).generate(
                input_ids=ids,
                attention_mask=mask.long().to(model.device),
                num_beams=config.title_beams,
                max_new_tokens=config.title_tokens,
                do_sample=False,
                length_penalty=1.0,
                early_stopping=False,
            )
        yield from tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)


def ground(
    written: np.ndarray, titles: Sequence[str], embedded: np.ndarray, examples: pl.DataFrame, config: EvalConfig
) -> Grounded:
    """Rank the catalog for every row by the distance of its items' titles to what was written.

    Args:
        written: (rows, hidden) embeddings of the texts that the model wrote.
        titles: of all items.
        embedded: (items, hidden) their embeddings; those of equal titles are equal.
        examples: the split; histories are left out with `eval.exclude_history`.
    """
    first, title_of = np.unique(titles, return_index=True, return_inverse=True)[1:]
    vectors = torch.from_numpy(embedded[first]).double()
    targets, histories = examples["target"].to_numpy(), examples["history"].to_list()
    rankings, best, ties = [], np.full(len(examples), np.inf), np.ones(len(examples))
    for start in range(0, len(examples), _BLOCK):
        block = torch.from_numpy(written[start : start + _BLOCK]).double()
        # Not by a matrix product: its rounding would make near distances equal, or order them in another way.
        by_title = torch.cdist(block, vectors, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        distances = by_title[:, title_of]
        for number, row in enumerate(distances):
            place, left = start + number, 0
            if config.exclude_history:
                left = len(set(histories[place]))
                row[histories[place]] = np.inf
            order = np.argsort(row, kind="stable")
            rankings.append(order[: min(config.num_beams, len(row) - left)])
            own = row[targets[place]]
            if np.isfinite(own):
                best[place], ties[place] = (row < own).sum(), (row == own).sum()
    return Grounded(rankings, best, ties)


def write_split(model: PreTrainedModel, prompts: Prompts, folder: Path, config: EvalConfig) -> list[str]:
    """The titles that a model writes for the rows of a split, (rows,); every process of a launch writes its share.

    They are stored in shards, so an interrupted evaluation resumes.

    Args:
        folder: of the artefact.
    """
    asked = prompts.title_prompts(prompts.dataset.split(config.split)["history"].to_list(), config.title_tokens)
    store = folder / CHECKPOINTS
    store.mkdir(exist_ok=True)
    shards = {store / f"titles-{rows.start:09d}.json": rows for rows in shards_of(len(asked), config.shard_size)}

    def write(rows: range, path: Path) -> None:
        texts = write_titles(model, prompts.tokenizer, [asked[row] for row in rows], config)
        write_json(path, [one_line(prompts.written_title(text)) for text in texts])

    over_shards(shards, write, f"titles {config.split}", "examples")
    return [text for path in shards for text in read_json(path)]


def rank_split(
    written: Sequence[str],
    prompts: Prompts,
    embedder: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    folder: Path,
    config: EvalConfig,
) -> list[np.ndarray]:
    """Per row of a split the nearest items. Writes `titles.json`, what the model wrote, and `grounding.json`.

    Args:
        embedder: the model, and its tokenizer, whose states are the embeddings.

    Raises:
        DataError: an item has no title.
    """
    titles, limit = catalog_titles(prompts), context_of(embedder[0])
    both = embed(*embedder, [*titles, *written], limit, config.batch_size)
    grounded = ground(both[len(titles) :], titles, both[: len(titles)], prompts.dataset.split(config.split), config)
    known, counts = set(titles), Counter(titles)
    tokens = embedder[1](titles, add_special_tokens=False)["input_ids"]
    cutoffs = cutoffs_within(config.num_beams)
    write_json(folder / TITLES, list(written))
    write_json(
        folder / GROUNDING,
        {
            "items": len(titles),
            "items_that_share_a_title": sum(count for count in counts.values() if count > 1),
            "titles_cut": 0 if limit is None else sum(len(ids) > limit for ids in tokens),
            "written_in_catalog": sum(text in known for text in written) / len(written),
            "written_nothing": sum(not text for text in written),
            "tied_in_expectation": _means(per_user(grounded.best, cutoffs, grounded.ties)),
            "best_of_tied": _means(per_user(grounded.best, cutoffs)),
        },
    )
    return grounded.rankings


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(row.mean()) for name, row in values.items()}
