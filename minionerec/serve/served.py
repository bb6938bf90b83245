"""A model as the service holds it: loaded, compared with lists that it made before, warmed up."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from minionerec.artifacts import MANIFEST, Manifest, read_json
from minionerec.config import ServeConfig
from minionerec.errors import ArtifactError, DataError
from minionerec.recommend import bundle
from minionerec.recommend.filters import Filters, Item
from minionerec.recommend.loading import trained_stage
from minionerec.recommend.recommender import Recommender

GOLDEN_LISTS = 16  # lists of its evaluation or export that a model must make again before it answers
MOST_CATEGORIES = 200  # in the page's menu


@dataclass(frozen=True)
class Tolerance:
    """How far lists may differ from golden ones.

    Attributes:
        score: largest difference of the scores of one rank, in nats.
        overlap: smallest share of the golden items that must be listed again.
    """

    score: float
    overlap: float


# Other batches, threads and devices round differently; low precision swaps items whose scores are close.
SAME, LOW_PRECISION = Tolerance(1e-3, 0.95), Tolerance(0.25, 0.6)


@dataclass(frozen=True)
class GoldenList:
    """A list that the model made when it was evaluated or exported.

    Attributes:
        history: items, oldest first.
        filters: of the list.
        sids: best first.
        scores: one per SID.
        dtype: number format of the model that made it.
    """

    history: Sequence[Item]
    filters: Filters
    sids: list[str]
    scores: list[float]
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A recommender with what the service tells about it.

    Attributes:
        recommender: makes the lists.
        source: where it was loaded from.
        stage: of the training, such as `rl`.
        digest: identifies its weights.
        golden: lists that it must make again.
    """

    recommender: Recommender
    source: str = "in memory"
    stage: str = ""
    digest: str = ""
    golden: tuple[GoldenList, ...] = ()

    @classmethod
    def load(
        cls,
        folder: Path,
        settings: ServeConfig,
        stage: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> "ServedModel":
        """The model of a run or of an exported folder, with the sets of items that `serve.named` names.

        `Recommender.load` describes `stage`, `device`, `dtype` and errors.

        Raises:
            DataError: a file of `serve.named` cannot be read, or the catalog lacks one of its items.
        """
        recommender = Recommender.load(folder, stage, device, dtype, None if settings.mixture else False)
        # A batch of the service is one batch of the model.
        size = max(recommender.config.batch_size, settings.max_batch)
        recommender.config = replace(recommender.config, batch_size=size)
        for name, file in settings.named_files().items():
            recommender.name_items(name, _read_ids(name, Path(file)))
        if bundle.is_bundle(folder):
            stage = read_json(folder / bundle.SERVING)["stage"]
            digest = bundle.load_manifest(folder).digest
            golden = _golden_of_bundle(folder, recommender)
        else:
            stage = trained_stage(folder, stage)
            digest = Manifest.load(folder / stage).digest
            golden = _golden_of_run(folder, recommender, stage, digest)
        return cls(recommender, str(folder), stage, digest, golden)

    def check(self) -> None:
        """Make the golden lists again and compare.

        Raises:
            ArtifactError: they differ by more than rounding.
        """
        if not self.golden:
            return
        formats = {str(self.recommender.model.dtype).removeprefix("torch."), *(golden.dtype for golden in self.golden)}
        tolerance = SAME if formats == {"float32"} else LOW_PRECISION
        histories, filters = zip(*((golden.history, golden.filters) for golden in self.golden), strict=True)
        lists = self.recommender.recommend(histories, k=None, filters=filters)
        hits, total, differences = 0, 0, [0.0]
        for golden, ours in zip(self.golden, lists, strict=True):
            scores = {item.sid: item.score for item in ours.items}
            hits, total = hits + len(scores.keys() & set(golden.sids)), total + len(golden.sids)
            pairs = zip(scores.values(), golden.scores, strict=False)  # a list of another length has another overlap
            differences += [abs(score - expected) for score, expected in pairs]
        overlap, difference = hits / max(total, 1), float(np.max(differences))  # NaN if one of them is
        if overlap < tolerance.overlap or not difference <= tolerance.score:
            raise ArtifactError(
                f"{self.source}: the model of {self.stage} does not make its golden lists. Over "
                f"{len(self.golden)} lists {overlap:.0%} of {total} SIDs are listed again (expected {tolerance.overlap:.0%}), "
                f"and scores differ by up to {difference:.3g} nats (expected {tolerance.score:g}). Something "
                "differs from when they were made, such as damaged weights or another version of a library. If that is meant, "
                "run minionerec eval or export again."
            )

    def warm_up(self, settings: ServeConfig) -> None:
        """Compute once what the first clients would otherwise wait for: a request alone, a full batch, the titles' index.

        `check` has computed a full batch already if there are as many golden lists.
        """
        length = min(self.recommender.max_history, len(self.recommender.items.ids))
        for size in (1,) if len(self.golden) >= settings.max_batch else (1, settings.max_batch):
            # Without a filter: such a history may have all items of a small catalog.
            self.recommender.recommend([list(range(length))] * size, k=1, exclude_history=False)
        self.recommender.recommend([[]], k=1)
        self.find("", 1)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `/v1/model` says of the model."""
        recommender = self.recommender
        return {
            "run": Path(self.source).name,
            "stage": self.stage,
            "digest": self.digest,
            "items": len(recommender.items.ids),
            "sids": len(recommender.trie),
            "levels": recommender.prompts.index.codes.shape[1],
            "max_history": recommender.max_history,
            "num_beams": recommender.config.num_beams,
            "normalise_over": recommender.config.normalise_over,
            "exclude_history": recommender.config.exclude_history,
            "device": str(recommender.model.device),
            "dtype": str(recommender.model.dtype).removeprefix("torch."),
            "golden_lists": len(self.golden),
            "named": sorted(recommender.items.named),
            "categories": self._categories,
            **({} if recommender.mixture is None else {"mixture": [*recommender.mixture.components]}),
        }

    @cached_property
    def _categories(self) -> list[str]:
        """The categories with most items."""
        catalog = self.recommender.items.catalog
        if "categories" not in catalog.columns:
            return []
        counts = catalog["categories"].drop_nulls().str.split(", ").explode().value_counts(sort=True)
        return [name for name in counts["categories"].to_list() if name][:MOST_CATEGORIES]

    @cached_property
    def _search_index(self) -> pl.DataFrame:
        """Per item its id, the text that is searched, and its popularity; the most popular first."""
        items = self.recommender.items
        return (
            pl.DataFrame(
                {
                    "item_id": items.ids,
                    "title": pl.Series(items.titles, dtype=pl.String).fill_null(""),
                    "popularity": np.asarray(self.recommender.popularity, dtype=np.float64),
                }
            )
            .with_columns(pl.col("title").str.to_lowercase().alias("text"))
            .sort("popularity", descending=True, maintain_order=True)
        )

    def find(self, query: str, limit: int) -> list[dict[str, str]]:
        """Items by words of their titles, or by id; the most popular first, an item whose id is the query before all."""
        index = self._search_index
        words = query.lower().split()
        if words:
            contains = pl.all_horizontal([pl.col("text").str.contains(word, literal=True) for word in words])
            is_id = pl.col("item_id") == query.strip()
            index = index.filter(contains | is_id).sort(is_id, descending=True, maintain_order=True)
        return index.head(limit).select("item_id", "title").to_dicts()

    def example(self, number: int) -> dict[str, Any]:
        """The history of a user of the test split, and the item that came next.

        Raises:
            DataError: there is no test split, or it has no such row.
        """
        split = self.recommender.prompts.dataset.split("test")
        if not 0 <= number < len(split):
            raise DataError(f"number is {number}; the test split has the rows 0 to {len(split) - 1}.")
        history, target = split["history"][number].to_list(), split["target"][number]
        return {"number": number, "of": len(split), "history": self._named(history), "next": self._named([target])[0]}

    def _named(self, items: Sequence[int]) -> list[dict[str, str]]:
        ids, titles = self.recommender.items.ids, self.recommender.items.titles
        return [{"item_id": ids[item], "title": titles[item] or ""} for item in items]


def _golden_of_run(folder: Path, recommender: Recommender, stage: str, digest: str) -> tuple[GoldenList, ...]:
    """The first lists of the evaluation of a run's model; none if it has not been evaluated as it is now.

    Raises:
        ArtifactError: they are damaged.
    """
    mixture = recommender.digests.get(f"mixture/{stage}")
    evaluation = folder / "eval" / (stage if mixture is None else f"{stage}-mixture")
    if not (evaluation / MANIFEST).is_file():
        return ()
    manifest = Manifest.load(evaluation)
    # A model that was trained again has other lists, and `prompts.eval_style` asks it with other words.
    if manifest.inputs.get(f"mixture/{stage}") != mixture:
        return ()
    if manifest.inputs.get(stage) != digest or manifest.config["prompts"].get("eval_style", "same") != "same":
        return ()
    text, dtype = recommender.prompts.index.text, manifest.config["eval"].get("dtype", "float32")

    def read(row: dict[str, Any]) -> GoldenList:
        sids = dict.fromkeys(text(item) for item in row["items"])  # items of one SID stand together
        return GoldenList(row["history"], Filters(), [*sids], row["scores"], dtype)

    return _golden(evaluation / "predictions.jsonl", read, "Run minionerec eval again.")


def _golden_of_bundle(folder: Path, recommender: Recommender) -> tuple[GoldenList, ...]:
    """The first golden lists of an exported folder, which are made without filters.

    Raises:
        ArtifactError: they are damaged.
    """
    tokens_of = recommender.prompts.tokenizer.convert_ids_to_tokens

    def read(row: dict[str, Any]) -> GoldenList:
        sids = ["".join(tokens_of(sid)) for sid in row["sids"]]
        return GoldenList(row["history"], Filters(exclude_history=False), sids, row["scores"])

    return _golden(folder / bundle.GOLDEN, read, "Export the run again.")


def _golden(path: Path, read: Callable[[dict[str, Any]], GoldenList], advice: str) -> tuple[GoldenList, ...]:
    try:
        with path.open(encoding="utf-8") as stream:
            return tuple(read(json.loads(line)) for line in islice(stream, GOLDEN_LISTS))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(f"{path}: does not hold the lists that it should ({error}). {advice}") from None


def _read_ids(name: str, file: Path) -> list[str]:
    """The ids in a file of `serve.named`, one a line.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"serve.named {name}={file}: cannot be read ({error}); expected a text file, an item's id a line."
        ) from None
    return [line.strip() for line in lines if line.strip()]
