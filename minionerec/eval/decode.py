"""Predictions for a split, decoded and stored in shards.

A shard is a file of some rows. Its rows do not depend on the number of processes, so any number of them writes the same files,
and an interrupted evaluation resumes after the shards that are complete.
"""

import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from minionerec.artifacts import CHECKPOINTS, over_shards, shards_of
from minionerec.config import CUTOFFS, EvalConfig
from minionerec.data.dataset import Dataset
from minionerec.distributed import is_main_process
from minionerec.errors import ArtifactError
from minionerec.eval import search_error
from minionerec.eval.predictions import Prediction, ScoreKind, as_predictions, own_ids, write_predictions
from minionerec.recommend.lists import Recommendation
from minionerec.recommend.recommender import Recommender
from minionerec.recommend.titles import TitleRecommender
from minionerec.sid.index import SidIndex
from minionerec.statistics.sampling import evenly_spaced
from minionerec.training.memory import enough_memory

_PREDICTIONS = "predictions.jsonl"
_TRACE = ".trace"  # ends the file beside a shard that has its traces, empty if none of its rows is traced
_MEMORY_ADVICE = (
    "while the split was decoded",
    "Lower eval.batch_size; the lists stay the same. If one example alone takes too much, lower eval.num_beams or "
    "eval.oracle_examples.",
)


class Decoder:
    """Asks what makes lists about the rows of a split; a subclass knows what that is.

    Attributes:
        config: which split, and how lists are made.
        index: of the run.
        score_kind: of the lists of SIDs.
    """

    score_kind: ScoreKind = "log-probability"

    def __init__(self, config: EvalConfig, dataset: Dataset, index: SidIndex) -> None:
        """Read the split that the configuration names."""
        self.config, self.index = config, index
        self._split = dataset.split(config.split)
        self._ids = dataset.catalog["item_id"].to_list()
        self._several = self._split["user"].n_unique() < len(self._split)  # then a prediction names its position

    def __len__(self) -> int:
        return len(self._split)

    def predict(self, rows: Sequence[int]) -> Iterator[Prediction]:
        """Predictions for some rows of the split, in their order."""
        for batch in self._batches(rows):
            yield from self._predictions(batch, self._split[list(batch)].rows(named=True))

    def trace(self, rows: Sequence[int]) -> Iterator[search_error.Trace]:
        """The whole catalog scored exactly for some rows of the split, and the beam search replayed on these scores."""
        widths = sorted({*CUTOFFS, self.config.num_beams})
        for batch in self._batches(rows):
            yield from self._traces(batch, self._split[list(batch)].rows(named=True), widths)

    def _predictions(self, rows: Sequence[int], examples: Sequence[dict[str, Any]]) -> Iterator[Prediction]:
        raise TypeError(f"{type(self).__name__} does not define _predictions().")

    def _traces(
        self, rows: Sequence[int], examples: Sequence[dict[str, Any]], widths: Sequence[int]
    ) -> Iterable[search_error.Trace]:
        raise TypeError(f"{type(self).__name__} does not define _traces().")

    def _prediction(self, example: dict[str, Any], recommendation: Recommendation) -> Prediction:
        """The prediction of a list of SIDs, whose items are tied."""
        codes = self.index.codes
        items = [item.index for item in recommendation.items]
        by_sid = [list(group) for _, group in itertools.groupby(recommendation.items, key=attrgetter("sid"))]
        return Prediction(
            user=example["user"],
            history=example["history"],
            target=example["target"],
            target_sid=codes[example["target"]].tolist(),
            sids=codes[[group[0].index for group in by_sid]].tolist(),
            items=items,
            scores=[group[0].score for group in by_sid],
            exact=recommendation.exact,
            score_kind=self.score_kind,
            position=example["position"] if self._several else None,
            sizes=[len(group) for group in by_sid] if len(items) > len(by_sid) else None,
            **own_ids(self._ids, example["target"], example["history"], items),
        )

    def _batches(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(rows), self.config.batch_size):
            yield rows[start : start + self.config.batch_size]


class SplitDecoder(Decoder):
    """Asks a recommender about the rows of a split, as its `config` says."""

    def __init__(self, recommender: Recommender) -> None:
        """Read the split that the configuration names."""
        super().__init__(recommender.config, recommender.prompts.dataset, recommender.prompts.index)
        self._recommender = recommender
        if recommender.assistant is not None and recommender.assistant.weight < 1:
            self.score_kind = "weighed logarithm"

    def _predictions(self, rows: Sequence[int], examples: Sequence[dict[str, Any]]) -> Iterator[Prediction]:
        lists = self._recommender.recommend([example["history"] for example in examples], k=None)
        for example, recommendation in zip(examples, lists, strict=True):
            yield self._prediction(example, recommendation)

    def _traces(
        self, rows: Sequence[int], examples: Sequence[dict[str, Any]], widths: Sequence[int]
    ) -> Iterable[search_error.Trace]:
        histories, targets = ([example[name] for example in examples] for name in ("history", "target"))
        return search_error.trace(self._recommender, rows, histories, targets, widths, self.config.normalise_over)


class TitleDecoder(Decoder):
    """Asks a recommender that ranks titles. Items of one title are tied, whatever their SIDs."""

    def __init__(self, recommender: TitleRecommender) -> None:
        """Read the split that the recommender's configuration names."""
        super().__init__(recommender.config, recommender.prompts.dataset, recommender.prompts.index)
        self._recommender, self._title_of = recommender, recommender.trie.leaf_of_item.tolist()

    def _predictions(self, rows: Sequence[int], examples: Sequence[dict[str, Any]]) -> Iterator[Prediction]:
        lists = self._recommender.recommend([example["history"] for example in examples], k=None)
        for row, example, recommendation in zip(rows, examples, lists, strict=True):
            items, target = [item.index for item in recommendation.items], example["target"]
            tied = [place for place, item in enumerate(items) if self._title_of[item] == self._title_of[target]]
            places = (tied[0], len(tied)) if target in items else (math.inf, 1)
            [prediction] = as_predictions(
                self._split[row : row + 1],
                [np.array(items, dtype=np.int64)],
                self.index,
                self._ids,
                recommendation.exact,
                places=(np.array(places[:1]), np.array(places[1:])),
            )
            yield dataclasses.replace(prediction, position=example["position"] if self._several else None)


@dataclasses.dataclass
class Clock:
    """How many lists have been made, and the time that they took, in seconds."""

    lists: int = 0
    seconds: float = 0.0

    @property
    def milliseconds(self) -> float | None:
        """What one list took; None if none has been made."""
        return 1000 * self.seconds / self.lists if self.lists else None

    def add(self, lists: int, seconds: float) -> None:
        """Count further lists."""
        self.lists += lists
        self.seconds += seconds


def timed(predictions: Iterator[Prediction], clock: Clock) -> Iterator[Prediction]:
    """The same predictions one by one; the clock runs while the next is being made, and not while one is used."""
    while True:
        began = time.perf_counter()
        prediction = next(predictions, None)
        clock.add(prediction is not None, time.perf_counter() - began)
        if prediction is None:
            return
        yield prediction


@dataclasses.dataclass
class _Writer:
    """Writes shards of predictions and traces.

    Attributes:
        traced: the rows of the split for which the whole catalog is scored exactly.
    """

    decoder: Decoder
    traced: set[int]
    clock: Clock = dataclasses.field(default_factory=Clock)

    def __call__(self, rows: range, path: Path) -> None:
        with enough_memory(lambda: _MEMORY_ADVICE):
            # The traces first: a shard under its final name is complete.
            search_error.write_traces(path.with_suffix(_TRACE), self.decoder.trace([row for row in rows if row in self.traced]))
            write_predictions(path, timed(self.decoder.predict(rows), self.clock))


def _is_whole(_: range, path: Path) -> bool:
    """Whether a shard has both of its files."""
    return path.is_file() and path.with_suffix(_TRACE).is_file()


def decode_split(decoder: Decoder, folder: Path, name: str = _PREDICTIONS) -> float | None:
    """Write `predictions.jsonl` and, if `eval.oracle_examples` is above 0, `oracle.jsonl` for a whole split.

    Every process calls it and takes its share of the shards; the main process merges them.

    Args:
        name: of the file with the predictions.

    Returns:
        the milliseconds that one list took in this process; None if it made none: all were there, or Ray made them.

    Raises:
        ArtifactError: a process did not finish its share.
    """
    config = decoder.config
    writer = _Writer(decoder, set(evenly_spaced(len(decoder), config.oracle_examples)))
    store = folder / CHECKPOINTS if name == _PREDICTIONS else folder / CHECKPOINTS / Path(name).stem
    store.mkdir(parents=True, exist_ok=True)
    shards = {
        store / f"rows-{rows.start:09d}-{rows.stop:09d}.jsonl": rows for rows in shards_of(len(decoder), config.shard_size)
    }
    over_shards(shards, writer, f"decode {config.split}", "examples", intact=_is_whole)
    if is_main_process():
        merge(shards, folder, writer.traced, name)
    return writer.clock.milliseconds


def merge(shards: Mapping[Path, range], folder: Path, traced: Collection[int], predictions: str = _PREDICTIONS) -> None:
    """Write the predictions and `oracle.jsonl` from the stored shards, in the split's order.

    Args:
        traced: the rows of the split that have a trace.

    Raises:
        ArtifactError: a file of a shard has not a line for each of its rows, or of its traced rows.
    """
    for name, suffix, what in ((predictions, ".jsonl", "predictions"), ("oracle.jsonl", _TRACE, "traces")):
        temporary = folder / f"{name}.tmp"
        with temporary.open("wb") as merged:
            for path, rows in shards.items():
                part = path.with_suffix(suffix)
                expected = len(rows) if suffix != _TRACE else sum(row in traced for row in rows)
                with part.open("rb") as shard:
                    lines = sum(1 for _ in shard)
                    if lines != expected:
                        raise ArtifactError(
                            f"{part}: {lines} {what} for {expected} rows. Delete it and run the same command again."
                        )
                    shard.seek(0)
                    shutil.copyfileobj(shard, merged)
        if temporary.stat().st_size:
            temporary.replace(folder / name)
        else:  # no examples were traced
            temporary.unlink()
